//! The program of the operator that sets and clears TXT records.
//!
//! Called as `PROGRAM [ARGUMENT...] set NAME VALUE`, and `clear` in place of `set` when the record is no longer needed.
//! No shell, nothing of our environment but `PATH`, no input; killed when it takes too long. It returns when the record
//! can be seen by everybody. What it writes to standard error is shown when it fails.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStderr, Command};
use tokio::time::timeout;

use crate::config::typed::Hook;

use super::problem::shown;

/// Why the program did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("the hook {} cannot be started: {source}; check that it exists and is executable by this user", program.display())]
    NotStarted { program: PathBuf, source: io::Error },
    #[error("the hook {} ended with {status}: {said}; mend the program", program.display())]
    Failed {
        program: PathBuf,
        status: String,
        said: String,
    },
    #[error("the hook {} did not end within {} s and was killed; it must return once the record can be seen", program.display(), LIMIT.as_secs())]
    Slow { program: PathBuf },
}

/// Name services take minutes at the worst.
const LIMIT: Duration = Duration::from_secs(300);
const SAID_BYTES_MAX: u64 = 4096;
/// For what it said to arrive once it has ended.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(100);
/// What programs are looked up in if they name others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program with `word` (`set` or `clear`), the record's name and its value.
pub(super) async fn run(hook: &Hook, word: &str, name: &str, value: &str) -> Result<(), HookError> {
    let program = || hook.program.clone();
    let mut child = Command::new(&hook.program)
        .args(&hook.arguments)
        .args([word, name, value])
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| HookError::NotStarted {
            program: program(),
            source,
        })?;
    let pipe = child.stderr.take();
    let ended = timeout(LIMIT, async {
        let mut said = Vec::new();
        let status = {
            let mut listen = pin!(listen(pipe, &mut said));
            tokio::select! {
                biased;
                () = &mut listen => child.wait().await,
                // A child of its own may keep the pipe open for ever.
                status = child.wait() => {
                    timeout(LAST_WORDS_LIMIT, listen).await.ok();
                    status
                }
            }
        };
        (status, said)
    });
    match ended.await {
        Err(_) => Err(HookError::Slow { program: program() }),
        Ok((Ok(status), _)) if status.success() => Ok(()),
        Ok((status, said)) => Err(HookError::Failed {
            program: program(),
            status: status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            said: shown(&String::from_utf8_lossy(&said)),
        }),
    }
}

/// Reads to the end, so that a program that says much is not stopped by it, and keeps how it began.
async fn listen(pipe: Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut beginning = (&mut pipe).take(SAID_BYTES_MAX);
    beginning.read_to_end(said).await.ok(); // what it said is no reason to fail
    tokio::io::copy(&mut pipe, &mut tokio::io::sink())
        .await
        .ok();
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn it_gets_its_words_and_nothing_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (program, out) = (folder.path().join("hook"), folder.path().join("out"));
        let text = format!(
            "#!/bin/sh\necho \"$*\" >{0}\nenv >>{0}\necho broken >&2\nexit $2\n",
            out.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let mut hook = Hook {
            program,
            arguments: vec!["zone".to_owned(), "0".to_owned()],
        };
        run(&hook, "set", "_acme-challenge.a.example", "v; $(x)")
            .await
            .unwrap();
        let text = fs::read_to_string(&out).unwrap();
        assert!(
            text.starts_with("zone 0 set _acme-challenge.a.example v; $(x)\n"),
            "{text}"
        );
        assert!(!text.contains("CARGO"), "{text}");
        hook.arguments[1] = "3".to_owned();
        let error = run(&hook, "clear", "n", "v").await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3: broken"), "{error}");
        hook.program = folder.path().join("missing");
        let error = run(&hook, "set", "n", "v").await.unwrap_err().to_string();
        assert!(error.contains("executable"), "{error}");
    }
}
