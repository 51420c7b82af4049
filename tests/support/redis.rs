//! A Redis server as a program of others, which asks for a password.
use std::path::PathBuf;
use std::process::Command;

use super::gate::{Place, free_port, run};
use super::peer::Peer;

/// Ended when dropped.
pub(crate) struct Redis {
    _server: Peer,
    port: u16,
    password: PathBuf,
}

const PASSWORD: &str = "not-for-anybody";

impl Redis {
    pub(crate) fn start(place: &Place) -> Self {
        Self::on(place, free_port())
    }

    /// One that speaks TLS, with the certificate of `place`.
    pub(crate) fn start_tls(place: &Place) -> Self {
        Self::listen(place, free_port(), true)
    }

    /// On a port that a former one had.
    pub(crate) fn on(place: &Place, port: u16) -> Self {
        Self::listen(place, port, false)
    }

    fn listen(place: &Place, port: u16, tls: bool) -> Self {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--requirepass", PASSWORD]);
        if tls {
            command.args(["--port", "0", "--tls-port", &port.to_string()]);
            command.args(["--tls-auth-clients", "no", "--tls-cert-file"]);
            command.arg(place.path("cert.pem")).arg("--tls-key-file");
            command
                .arg(place.path("key.pem"))
                .arg("--tls-ca-cert-file")
                .arg(place.ca());
        } else {
            command.args(["--port", &port.to_string()]);
        }
        command.arg("--dir").arg(place.path(""));
        let mut server = Peer::start(&mut command, place.path("redis.out"));
        server.wait_port(port);
        let password = place.path("redis.password");
        std::fs::write(&password, PASSWORD).expect("a file");
        Self {
            _server: server,
            port,
            password,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The file that holds it.
    pub(crate) fn password(&self) -> PathBuf {
        self.password.clone()
    }

    /// What it answers.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "--no-auth-warning",
        ]);
        run(command.args(["-a", PASSWORD]).args(words)).ok()
    }
}
