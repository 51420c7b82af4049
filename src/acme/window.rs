//! When the certificate authority wants to be asked for the next certificate (RFC 9773): asked for each certificate that
//! is served, as often as it wants.
//!
//! Without an answer two thirds of the life count; nothing fails here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::typed::Issuer;
use crate::tls::Certificate;

use super::answer::now;
use super::client::Client;
use super::problem::{Failure, shown};
use super::renewal::{RenewalInfo, by_window, suggestion_age};
use super::tend::{Tended, drawn};

impl Tended {
    /// Asks the certificate authority when it wants to be asked for the next certificate (RFC 9773).
    pub(super) async fn ask_for_window(&mut self) {
        if now() < self.ask_at {
            return;
        }
        let (Some(kept), Some(certificate)) = (&self.kept, self.ordered.certificate()) else {
            return;
        };
        let issuers = &self.ordered.acme.issuers;
        let issuer = issuers.iter().find(|i| i.directory == kept.directory);
        let asked = match issuer {
            Some(issuer) => {
                let from = certificate.not_before.max(kept.issued);
                self.window(issuer, &certificate, from).await
            }
            None => Ok((None, None)),
        };
        let age = match asked {
            Ok((due, age)) => {
                self.due = due.unwrap_or(self.due);
                age
            }
            Err(failure) => {
                tracing::debug!(name = %self.ordered.label, "no renewal window: {failure}");
                failure.retry_after()
            }
        };
        let seconds = suggestion_age(age).as_secs();
        self.ask_at = now().saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// When to order, by the window that `issuer` suggests, and when to ask again.
    async fn window(
        &self,
        issuer: &Issuer,
        certificate: &Certificate,
        from: i64,
    ) -> Result<(Option<i64>, Option<Duration>), Failure> {
        let client = Client::new(issuer, &self.tools.reach).await?;
        let (Some(url), Some(identifier)) =
            (&client.directory.renewal_info, identifier(certificate))
        else {
            return Ok((None, None));
        };
        let url = format!("{}/{identifier}", url.trim_end_matches('/'));
        let reply = client.get(&url).await?;
        let age = reply.retry_after();
        let info: RenewalInfo = reply.json()?;
        let window = info.window();
        let window = window.ok_or_else(|| reply.not_acme("the window is none"))?;
        let stays = self.due >= window.start && self.due < window.end && self.ask_at > 0;
        let due = if stays {
            self.due
        } else {
            by_window(window, from, certificate.not_after, drawn())
        };
        if let Some(why) = info.explanation.filter(|_| window.end <= now()) {
            let why = shown(&why);
            tracing::warn!(name = %self.ordered.label, %why, "the certificate authority wants this certificate renewed now");
        }
        Ok((Some(due), age))
    }
}

pub(super) fn identifier(certificate: &Certificate) -> Option<String> {
    let (issuer, serial) = certificate.renewal_identifier()?;
    let encode = |bytes| URL_SAFE_NO_PAD.encode::<Vec<u8>>(bytes);
    Some(format!("{}.{}", encode(issuer), encode(serial)))
}
