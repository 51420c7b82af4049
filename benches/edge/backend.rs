//! What stands behind the proxies: nginx with a page of 1 KiB and a file of 100 MiB, and a sink for uploads.
//!
//! Both are the same for every side. The sink is a few threads of the benchmark itself: it reads a body of the
//! announced length and answers when it has all of it, if it was what the client sent.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};

use crate::child::{Child, User, free_address};
use crate::sides::nginx_head;

pub(crate) const PAGE_BYTES: usize = 1024;
pub(crate) const FILE_BYTES: u64 = 100 << 20;
/// Every big body repeats after this many bytes.
pub(crate) const PATTERN_BYTES: usize = 1 << 20;

/// Which way through Tollgate is measured.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Way {
    In(Key),
    Out,
}

/// Of the certificate in front.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Key {
    P256,
    Rsa2048,
}

/// The servers behind, and the certificate in front.
pub(crate) struct Backend {
    pub(crate) way: Way,
    pub(crate) pages: SocketAddr,
    pub(crate) sink: SocketAddr,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file.
    pub(crate) both: PathBuf,
    pub(crate) der: Vec<u8>,
    _nginx: Child,
}

impl Backend {
    pub(crate) fn start(way: Way, folder: &Path, core: usize) -> Result<Self> {
        let pair = match way {
            Way::In(Key::Rsa2048) => KeyPair::generate_for(&PKCS_RSA_SHA256)?,
            Way::In(Key::P256) | Way::Out => KeyPair::generate()?,
        };
        let made = CertificateParams::new(["localhost".to_owned()])?.self_signed(&pair)?;
        let (cert, key, both) = (
            folder.join("cert.pem"),
            folder.join("key.pem"),
            folder.join("both.pem"),
        );
        fs::write(&cert, made.pem())?;
        fs::write(&key, pair.serialize_pem())?;
        fs::write(&both, made.pem() + &pair.serialize_pem())?;
        let pages = free_address()?;
        let root = folder.join("pages");
        fs::create_dir_all(&root)?;
        fs::write(root.join("index.html"), vec![b'x'; PAGE_BYTES])?;
        let mut big = fs::File::create(root.join("big"))?;
        for _ in 0..FILE_BYTES / PATTERN_BYTES as u64 {
            big.write_all(pattern())?;
        }
        let server = format!(
            "sendfile on; open_file_cache max=8;\nserver {{ listen {pages} backlog=4096; root {}; }}\n}}\n",
            root.display()
        );
        let conf = folder.join("pages.conf");
        fs::write(&conf, nginx_head(folder) + &server)?;
        let (place, path) = (folder.display().to_string(), conf.display().to_string());
        let args = ["-p", &place, "-c", &path, "-e", "stderr"];
        let mut nginx = Child::start("pages", core, User::Own, folder, Path::new("nginx"), &args)?;
        nginx.listens(pages)?;
        Ok(Self {
            way,
            pages,
            sink: sink()?,
            cert,
            key,
            both,
            der: made.der().to_vec(),
            _nginx: nginx,
        })
    }
}

fn sink() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            std::thread::spawn(move || swallow(tcp).ok());
        }
    });
    Ok(address)
}

fn swallow(tcp: TcpStream) -> io::Result<()> {
    let mut out = tcp.try_clone()?;
    let mut input = BufReader::with_capacity(256 << 10, tcp);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(':') {
                None if line.trim_end().is_empty() => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0);
                }
                _ => {}
            }
        }
        let status = match take_pattern(&mut input, length)? {
            true => "200 OK",
            false => "422 Unprocessable Content",
        };
        write!(out, "HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok")?;
    }
}

/// Reads `length` bytes; whether they were the pattern. A body that ends early is an error.
pub(crate) fn take_pattern(input: &mut impl BufRead, length: u64) -> io::Result<bool> {
    let (pattern, mut had, mut right) = (pattern(), 0, true);
    while had < length {
        let place = (had % PATTERN_BYTES as u64) as usize;
        let wanted = pattern.get(place..).unwrap_or_default();
        let fresh = input.fill_buf()?;
        let most = usize::try_from(length - had).unwrap_or(usize::MAX);
        let count = fresh.len().min(wanted.len()).min(most);
        if count == 0 {
            let problem = format!("ended after {had} of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        right &= fresh.get(..count) == wanted.get(..count);
        input.consume(count);
        had += count as u64;
    }
    Ok(right)
}

/// What no proxy gets right by chance, the same in every run (xorshift).
pub(crate) fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut pattern = Vec::with_capacity(PATTERN_BYTES);
        while pattern.len() < PATTERN_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            pattern.extend_from_slice(&state.to_le_bytes());
        }
        pattern
    })
}
