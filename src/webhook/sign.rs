//! Both signatures of a delivery.
//!
//! - Gateway scheme: hex(HMAC-SHA256(secret text, `method\npath?query\ntimestamp\nnonce\nsha256hex(body)`)).
//! - Standard Webhooks: base64(HMAC-SHA256(key, `id.timestamp.body`)) behind `v1,`, one per secret, separated by a space. The
//!   key is the base64 after `whsec_`, else the secret's bytes.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// What the gateway's scheme signs.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignedRequest<'a> {
    pub(super) method: &'a str,
    /// Path with query, as sent.
    pub(super) path: &'a str,
    /// Unix seconds in decimal.
    pub(super) timestamp: &'a str,
    pub(super) nonce: &'a str,
    pub(super) body: &'a [u8],
}

impl SignedRequest<'_> {
    /// The value of `X-Signature`.
    pub(super) fn sign(&self, secret: &str) -> String {
        let Self { method, path, timestamp, nonce, body } = self;
        let canonical = format!("{method}\n{path}\n{timestamp}\n{nonce}\n{}", hex(&Sha256::digest(body)));
        hex(&keyed(secret.as_bytes()).chain_update(canonical).finalize().into_bytes())
    }
}

/// The value of `webhook-signature`, in the order of the secrets.
pub(super) fn standard_webhooks<'a>(
    secrets: impl IntoIterator<Item = &'a str>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let mut header = String::new();
    for secret in secrets {
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        let decoded = secret.strip_prefix("whsec_").and_then(|encoded| BASE64.decode(encoded).ok());
        let mac = keyed(decoded.as_deref().unwrap_or(secret.as_bytes()));
        let mac = mac.chain_update(format!("{id}.{timestamp}.")).chain_update(body);
        BASE64.encode_string(mac.finalize().into_bytes(), &mut header);
    }
    header
}

/// False only for `whsec_` followed by something that is not base64.
pub(super) fn is_usable_secret(secret: &str) -> bool {
    secret.strip_prefix("whsec_").is_none_or(|encoded| BASE64.decode(encoded).is_ok())
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_webhooks_reference_vector() {
        // The example of the Standard Webhooks reference libraries.
        let signed = standard_webhooks(
            ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_give_two_signatures() {
        let of = |secrets: &[&'static str]| standard_webhooks(secrets.iter().copied(), "e", 1, b"{}");
        assert_eq!(of(&["first", "second"]), format!("{} {}", of(&["first"]), of(&["second"])));
    }

    #[test]
    fn unusable_secrets() {
        assert!(is_usable_secret("plain") && is_usable_secret("whsec_AAAA"));
        assert!(!is_usable_secret("whsec_!"));
    }
}
