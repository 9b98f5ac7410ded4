//! Request signatures: the gateway's own for API calls and webhooks, and Standard Webhooks.
//!
//! Two schemes, both HMAC-SHA256:
//!
//! | scheme | signed text | key | form |
//! |---|---|---|---|
//! | gateway | `method\npath\ntimestamp\nnonce\nsha256hex(body)` | the secret's bytes | hex |
//! | Standard Webhooks | `id.timestamp.body` | base64 after `whsec_`, else the secret's bytes | `v1,` and base64 |
//!
//! `path` is path and query exactly as sent. No clock and no randomness here: timestamps, nonces and ids are arguments,
//! and whether a timestamp is fresh or a nonce new is for the caller to judge.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::protocol::Hex;

/// Prefix of a Standard Webhooks secret; base64 follows.
const WEBHOOK_SECRET_PREFIX: &str = "whsec_";

/// What the gateway's scheme signs.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// Upper-case method.
    pub method: &'a str,
    /// Path with query, exactly as sent.
    pub path: &'a str,
    /// `X-Timestamp`, Unix seconds in decimal, exactly as sent.
    pub timestamp: &'a str,
    /// `X-Nonce`, exactly as sent.
    pub nonce: &'a str,
    /// The body's bytes.
    pub body: &'a [u8],
}

impl SignedRequest<'_> {
    /// The text that is signed.
    pub fn canonical(&self) -> String {
        self.canonical_of(Sha256::digest(self.body).into())
    }

    fn canonical_of(&self, body_sha256: [u8; 32]) -> String {
        let Self { method, path, timestamp, nonce, .. } = self;
        format!("{method}\n{path}\n{timestamp}\n{nonce}\n{}", Hex(body_sha256))
    }

    /// The value of `X-Signature`: lower-case hex.
    pub fn sign(&self, secret: &str) -> String {
        Hex(keyed(secret.as_bytes()).chain_update(self.canonical()).finalize().into_bytes()).to_string()
    }

    /// Whether `signature` is the hex signature of this request, compared in constant time.
    ///
    /// A timestamp or nonce with a line break could move text between fields, so such a request never verifies.
    pub fn verify(&self, secret: &str, signature: &str) -> bool {
        self.verify_of(Sha256::digest(self.body).into(), secret, signature)
    }

    /// As [`Self::verify`], of a body that is known by its SHA-256 only.
    pub fn verify_of(&self, body_sha256: [u8; 32], secret: &str, signature: &str) -> bool {
        let fields = [self.method, self.path, self.timestamp, self.nonce];
        if fields.iter().any(|field| field.contains('\n')) {
            return false;
        }
        let mac = keyed(secret.as_bytes()).chain_update(self.canonical_of(body_sha256));
        decode_hex(signature).is_some_and(|bytes| mac.verify_slice(&bytes).is_ok())
    }
}

/// The value of `webhook-signature` for one or more secrets: signatures separated by spaces, in the order given.
///
/// `timestamp` is Unix seconds.
pub fn standard_webhooks<'a>(
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
        BASE64.encode_string(webhook_mac(secret, id, timestamp, body).finalize().into_bytes(), &mut header);
    }
    header
}

/// Whether any `v1` signature in a `webhook-signature` header is by `secret`, compared in constant time.
pub fn verify_standard_webhooks(secret: &str, id: &str, timestamp: i64, body: &[u8], header: &str) -> bool {
    let signatures = header.split(' ').filter_map(|part| BASE64.decode(part.strip_prefix("v1,")?).ok());
    signatures.fold(false, |found, signature| {
        webhook_mac(secret, id, timestamp, body).verify_slice(&signature).is_ok() | found
    })
}

/// Whether a secret has a key: false only for `whsec_` followed by something that is not base64.
pub fn is_usable_secret(secret: &str) -> bool {
    secret.strip_prefix(WEBHOOK_SECRET_PREFIX).is_none_or(|encoded| BASE64.decode(encoded).is_ok())
}

/// A secret after `whsec_` that is not base64 is taken as bytes, prefix included; the configuration refuses such secrets.
fn webhook_mac(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Hmac<Sha256> {
    let decoded = secret.strip_prefix(WEBHOOK_SECRET_PREFIX).and_then(|encoded| BASE64.decode(encoded).ok());
    keyed(decoded.as_deref().unwrap_or(secret.as_bytes())).chain_update(format!("{id}.{timestamp}.")).chain_update(body)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// Exactly 32 bytes of hex in either case.
pub(crate) fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = match pair {
            [high, low] => digit(*high)? << 4 | digit(*low)?,
            _ => return None,
        };
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: SignedRequest<'static> = SignedRequest {
        method: "POST",
        path: "/api/v1/third/devices/40aace04/charge?x=1",
        timestamp: "1700000000",
        nonce: "n-1",
        body: b"{\"port_no\":1}",
    };
    /// From the signature examples of the Standard Webhooks libraries.
    const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const WEBHOOK_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const WEBHOOK_TIMESTAMP: i64 = 1_614_265_330;
    const WEBHOOK_BODY: &[u8] = b"{\"test\": 2432232314}";
    const WEBHOOK_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn canonical_text() {
        assert_eq!(
            SignedRequest { body: b"", ..REQUEST }.canonical(),
            "POST\n/api/v1/third/devices/40aace04/charge?x=1\n1700000000\nn-1\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn known_request_signature() {
        assert_eq!(REQUEST.sign("secret"), "52c82d46375624b86bce1f2c75f759c0076995b4acb8f4147f19a7fa311db2f6");
    }

    #[test]
    fn each_field_is_signed() {
        let signature = REQUEST.sign("secret");
        assert!(REQUEST.verify("secret", &signature));
        assert!(REQUEST.verify("secret", &signature.to_uppercase()));
        assert!(!REQUEST.verify("other", &signature));
        for changed in [
            SignedRequest { method: "PUT", ..REQUEST },
            SignedRequest { path: "/api/v1/third/devices/40aace04/charge", ..REQUEST },
            SignedRequest { timestamp: "1700000001", ..REQUEST },
            SignedRequest { nonce: "n-2", ..REQUEST },
            SignedRequest { body: b"{\"port_no\":2}", ..REQUEST },
        ] {
            assert!(!changed.verify("secret", &signature), "{changed:?}");
        }
        for broken in ["", &signature[1..], &format!("{signature}0"), &signature.replace('0', "g")] {
            assert!(!REQUEST.verify("secret", broken), "{broken}");
        }
    }

    #[test]
    fn line_breaks_cannot_move_text_between_fields() {
        let shifted = SignedRequest { timestamp: "1700000000\nn-1", nonce: "x", ..REQUEST };
        assert!(!shifted.verify("secret", &shifted.sign("secret")));
    }

    #[test]
    fn known_webhook_signature() {
        let header = standard_webhooks([WEBHOOK_SECRET], WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_BODY);
        assert_eq!(header, WEBHOOK_SIGNATURE);
    }

    #[test]
    fn two_secrets_sign_during_rotation() {
        let header = standard_webhooks([WEBHOOK_SECRET, "plain text"], WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_BODY);
        assert!(header.starts_with(&format!("{WEBHOOK_SIGNATURE} v1,")));
        for secret in [WEBHOOK_SECRET, "plain text"] {
            assert!(verify_standard_webhooks(secret, WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_BODY, &header));
        }
        assert!(!verify_standard_webhooks("other", WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_BODY, &header));
        assert!(!verify_standard_webhooks(WEBHOOK_SECRET, WEBHOOK_ID, WEBHOOK_TIMESTAMP + 1, WEBHOOK_BODY, &header));
        assert!(!verify_standard_webhooks(WEBHOOK_SECRET, "other", WEBHOOK_TIMESTAMP, WEBHOOK_BODY, &header));
        assert!(!verify_standard_webhooks(WEBHOOK_SECRET, WEBHOOK_ID, WEBHOOK_TIMESTAMP, b"", &header));
    }

    #[test]
    fn usable_secrets() {
        assert!(is_usable_secret(WEBHOOK_SECRET));
        assert!(is_usable_secret("any text"));
        assert!(!is_usable_secret("whsec_not base64"));
    }
}
