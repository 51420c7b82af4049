//! A client certificate as it is written down: worked out once per connection, copied into each of its records.
//!
//! Subject and names are whatever an issuer let somebody choose, so every one of them has a bound and is escaped.

use super::json::Fields;

const NAME_BYTES_MAX: usize = 512;
const SERIAL_BYTES_MAX: usize = 64;
/// Alternative names that are written, and the length of each.
const ALTERNATIVES_MAX: usize = 8;
const ALTERNATIVE_BYTES_MAX: usize = 256;
/// No certificate takes more of a record: both names, the serial number, the alternatives, and what is around them.
pub(super) const CERTIFICATE_BYTES_MAX: usize =
    2 * NAME_BYTES_MAX + SERIAL_BYTES_MAX + ALTERNATIVES_MAX * (ALTERNATIVE_BYTES_MAX + 8) + 512;

/// What identifies a certificate, as read from it.
#[derive(Clone, Debug)]
pub struct Features<'a> {
    /// RFC 4514
    pub subject: &'a str,
    /// RFC 4514
    pub issuer: &'a str,
    /// Hexadecimal, lower case.
    pub serial: &'a str,
    /// SHA-256 of the whole certificate, hexadecimal, lower case.
    pub fingerprint: &'a str,
    /// Subject alternative names, as in `DNS:a.example`.
    pub names: &'a [String],
}

/// A certificate, encoded for the record.
#[derive(Clone)]
pub struct Certificate(Box<[u8]>);

/// Whose certificate a denial is about.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// Shown, and not verified: anybody can claim anything.
    Claimed(&'a Certificate),
    /// Verified.
    Principal(&'a Certificate),
}

impl Certificate {
    /// Encodes it.
    pub fn new(features: &Features<'_>) -> Self {
        let mut out = Vec::with_capacity(CERTIFICATE_BYTES_MAX / 4);
        let mut fields = Fields::new(&mut out);
        fields.text("subject", features.subject.as_bytes(), NAME_BYTES_MAX);
        fields.text("issuer", features.issuer.as_bytes(), NAME_BYTES_MAX);
        fields.text("serial", features.serial.as_bytes(), SERIAL_BYTES_MAX);
        fields.word("fingerprint", features.fingerprint);
        if !features.names.is_empty() {
            let names = features.names.iter().map(String::as_bytes);
            fields.texts("names", names, ALTERNATIVES_MAX, ALTERNATIVE_BYTES_MAX);
        }
        fields.close();
        Self(out.into())
    }

    /// Appends it as the object `key`.
    pub(super) fn write(&self, key: &'static str, fields: &mut Fields<'_>) {
        fields.encoded_object(key, &self.0);
    }
}

impl Who<'_> {
    pub(super) fn write(self, fields: &mut Fields<'_>) {
        match self {
            Self::Claimed(certificate) => certificate.write("claimed", fields),
            Self::Principal(certificate) => certificate.write("principal", fields),
        }
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_certificate_says_is_bounded_and_cannot_look_like_something_else() {
        let long = "\u{1}\"é".repeat(5_000);
        let names = vec![long.clone(); 50];
        let features = Features {
            subject: &long,
            issuer: "CN=partner\",\"way\":\"egress",
            serial: &"0".repeat(500),
            fingerprint: "ab",
            names: &names,
        };
        let mut out = b"{".to_vec();
        let mut fields = Fields::new(&mut out);
        let certificate = Certificate::new(&features);
        Who::Claimed(&certificate).write(&mut fields);
        fields.close();
        out.push(b'}');
        assert!(out.len() < CERTIFICATE_BYTES_MAX, "{}", out.len());
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let claimed = &read["claimed"];
        assert_eq!(claimed["issuer"], features.issuer);
        assert_eq!(claimed["truncated"], true);
        assert_eq!(claimed["names"].as_array().unwrap().len(), ALTERNATIVES_MAX);
    }
}
