//! Bodies of any size that cost no memory, and their checksums.
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// A prime length, so that a block lost or doubled on any boundary changes the checksum.
const BLOCK_BYTES: usize = 65_521;

static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x2545_f491_u32;
    (0..BLOCK_BYTES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_be_bytes()[0]
        })
        .collect()
});

/// What the test peers send: a text, so many bytes of the pattern, or whatever is fed to it.
pub(crate) enum Payload {
    Feed(mpsc::Receiver<Bytes>),
    Pattern { left: u64 },
    Text(Option<Bytes>),
}

impl Payload {
    pub(crate) fn empty() -> Self {
        Self::Text(None)
    }

    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()))
    }

    pub(crate) fn pattern(bytes: u64) -> Self {
        Self::Pattern { left: bytes }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Feed(feed) => return feed.poll_recv(cx).map(|d| d.map(|d| Ok(Frame::data(d)))),
            Self::Text(text) => text.take(),
            Self::Pattern { left } => {
                let take = usize::try_from(*left).map_or(BLOCK_BYTES, |l| l.min(BLOCK_BYTES));
                *left -= take as u64;
                (take > 0).then(|| BLOCK.slice(..take))
            }
        };
        Poll::Ready(data.map(|d| Ok(Frame::data(d))))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Feed(_) => SizeHint::default(),
            Self::Pattern { left } => SizeHint::with_exact(*left),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(None) | Self::Pattern { left: 0 })
    }
}

/// Size and SHA-256 of what arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Sum {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Sum {
    /// Of so many bytes of the pattern.
    pub(crate) fn of_pattern(bytes: u64) -> Self {
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut left = bytes;
        while left > 0 {
            let take = usize::try_from(left).map_or(BLOCK_BYTES, |l| l.min(BLOCK_BYTES));
            digest.update(&BLOCK[..take]);
            left -= take as u64;
        }
        Self {
            bytes,
            sha256: hex(digest.finish().as_ref()),
        }
    }

    /// Of a whole body, read to its end.
    pub(crate) async fn of<B>(mut body: B) -> Result<Self, B::Error>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                digest.update(&data);
                bytes += data.len() as u64;
            }
        }
        Ok(Self {
            bytes,
            sha256: hex(digest.finish().as_ref()),
        })
    }

    /// Of a file.
    pub(crate) fn of_file(path: &std::path::Path) -> Self {
        let data = std::fs::read(path).expect("the file can be read");
        Self {
            bytes: data.len() as u64,
            sha256: hex(digest::digest(&digest::SHA256, &data).as_ref()),
        }
    }
}

/// Writes so many bytes of the pattern to a file.
pub(crate) fn pattern_file(path: &std::path::Path, bytes: u64) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("the file can be made");
    let mut left = bytes;
    while left > 0 {
        let take = usize::try_from(left).map_or(BLOCK_BYTES, |l| l.min(BLOCK_BYTES));
        file.write_all(&BLOCK[..take]).expect("room on the disk");
        left -= take as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
