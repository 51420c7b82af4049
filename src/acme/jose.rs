//! Signed requests as a certificate authority wants them: JWS in flattened JSON (RFC 7515, RFC 8555 section 6.2).
//!
//! ES256 for the account's key, HS256 to bind an account to a customer. A key shows itself only by its thumbprint.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// The key of an account, ECDSA P-256.
pub(super) struct AccountKey {
    pair: EcdsaKeyPair,
    /// As it is kept.
    pkcs8: Zeroizing<Vec<u8>>,
}

/// By what a request names its key.
pub(super) enum Signer<'a> {
    /// The URL of the account, once there is one.
    Account(&'a str),
    /// The key itself.
    Key,
}

impl AccountKey {
    /// A new one; `None` if the operating system gives no random bytes.
    pub(super) fn draw() -> Option<Self> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        Self::from_pkcs8(pkcs8.ok()?.as_ref())
    }

    /// One that was kept.
    pub(super) fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes).ok()?;
        let pkcs8 = Zeroizing::new(bytes.to_vec());
        Some(Self { pair, pkcs8 })
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The request body that carries `payload` to `url`; an empty payload asks for what is there (POST-as-GET).
    pub(super) fn signed(
        &self,
        signer: &Signer<'_>,
        nonce: &str,
        url: &str,
        payload: Option<&Value>,
    ) -> Option<Vec<u8>> {
        let mut protected = json!({ "alg": "ES256", "nonce": nonce, "url": url });
        let (name, value) = match signer {
            Signer::Account(account) => ("kid", Value::from(*account)),
            Signer::Key => ("jwk", self.jwk()),
        };
        if let Some(fields) = protected.as_object_mut() {
            fields.insert(name.to_owned(), value);
        }
        let payload = payload.map(Value::to_string).unwrap_or_default();
        let random = SystemRandom::new();
        let whole = flattened(&protected, &payload, |bytes| {
            let signature = self.pair.sign(&random, bytes).ok()?;
            Some(signature.as_ref().to_vec())
        })?;
        Some(whole.to_string().into_bytes())
    }

    /// That the holder of `key`, called `kid`, is who makes this account at `url` (RFC 8555 section 7.3.4).
    pub(super) fn bound(&self, kid: &str, key: &[u8], url: &str) -> Option<Value> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let protected = json!({ "alg": "HS256", "kid": kid, "url": url });
        flattened(&protected, &self.jwk().to_string(), |bytes| {
            Some(hmac::sign(&key, bytes).as_ref().to_vec())
        })
    }

    /// What answers a challenge with `token` (RFC 8555 section 8.1).
    pub(super) fn authorization(&self, token: &str) -> String {
        let thumbprint = sha256(self.jwk().to_string().as_bytes());
        format!("{token}.{}", URL_SAFE_NO_PAD.encode(thumbprint))
    }

    /// Its fields are sorted and without spaces, as a thumbprint needs them (RFC 7638 section 3).
    fn jwk(&self) -> Value {
        // An uncompressed point: 4, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let coordinate = |at: usize| {
            let bytes = point.get(at..at + 32).unwrap_or_default();
            URL_SAFE_NO_PAD.encode(bytes)
        };
        json!({ "crv": "P-256", "kty": "EC", "x": coordinate(1), "y": coordinate(33) })
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn flattened(
    protected: &Value,
    payload: &str,
    sign: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Option<Value> {
    let protected = URL_SAFE_NO_PAD.encode(protected.to_string());
    let payload = URL_SAFE_NO_PAD.encode(payload);
    let signature = sign(format!("{protected}.{payload}").as_bytes())?;
    let signature = URL_SAFE_NO_PAD.encode(signature);
    Some(json!({ "protected": protected, "payload": payload, "signature": signature }))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn decoded(value: &Value, field: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD
            .decode(value[field].as_str().unwrap())
            .unwrap()
    }

    #[test]
    fn a_request_is_signed_by_the_key_that_was_kept() {
        let key = AccountKey::draw().unwrap();
        let kept = AccountKey::from_pkcs8(key.pkcs8()).unwrap();
        let payload = json!({ "a": 1 });
        let body = kept
            .signed(
                &Signer::Account("https://ca.example/1"),
                "n",
                "u",
                Some(&payload),
            )
            .unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let protected: Value = serde_json::from_slice(&decoded(&body, "protected")).unwrap();
        assert_eq!(
            protected,
            json!({ "alg": "ES256", "kid": "https://ca.example/1", "nonce": "n", "url": "u" })
        );
        assert_eq!(decoded(&body, "payload"), br#"{"a":1}"#);
        let text = format!(
            "{}.{}",
            body["protected"].as_str().unwrap(),
            body["payload"].as_str().unwrap()
        );
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key());
        public
            .verify(text.as_bytes(), &decoded(&body, "signature"))
            .unwrap();
        let asked = key.signed(&Signer::Key, "n", "u", None).unwrap();
        let asked: Value = serde_json::from_slice(&asked).unwrap();
        assert_eq!(asked["payload"], "");
    }

    #[test]
    fn an_authorization_is_token_and_thumbprint() {
        let key = AccountKey::draw().unwrap();
        let authorization = key.authorization("token");
        let (token, print) = authorization.split_once('.').unwrap();
        assert_eq!(token, "token");
        let jwk = key.jwk();
        let canonical = format!(
            r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#,
            jwk["x"], jwk["y"]
        );
        assert_eq!(
            URL_SAFE_NO_PAD.decode(print).unwrap(),
            sha256(canonical.as_bytes())
        );
    }
}
