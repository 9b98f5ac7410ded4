//! Every error code the API can answer with, and the error value that carries one.

use std::borrow::Cow;

use serde_json::Value;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal;)*) => {
        /// The `error` member of an error answer. Clients branch on it, so a code never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// All codes, by status.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in the answer.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The HTTP status, which is also the answer's `code`.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)*
                }
            }
        }
    };
}

error_codes! {
    /// A path, query or body value that is missing, unknown or out of range; also a request that is not HTTP.
    InvalidParameter = "INVALID_PARAMETER", 400;
    /// The device has no connection.
    DeviceOffline = "DEVICE_OFFLINE", 400;
    /// The device's protocol cannot do this.
    NotSupported = "NOT_SUPPORTED", 400;
    /// No key, a wrong key, or a signature that does not hold.
    Unauthorized = "UNAUTHORIZED", 401;
    /// The card that is to pay has too little.
    InsufficientBalance = "INSUFFICIENT_BALANCE", 402;
    /// The key is good but not for this: scope or address.
    Forbidden = "FORBIDDEN", 403;
    /// No such path.
    NotFound = "NOT_FOUND", 404;
    DeviceNotFound = "DEVICE_NOT_FOUND", 404;
    PortNotFound = "PORT_NOT_FOUND", 404;
    /// No such order, or nothing runs on the port.
    OrderNotFound = "ORDER_NOT_FOUND", 404;
    TaskNotFound = "TASK_NOT_FOUND", 404;
    CardNotFound = "CARD_NOT_FOUND", 404;
    /// The path exists with other methods, which `Allow` names.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405;
    /// The head or the body did not arrive in time.
    RequestTimeout = "REQUEST_TIMEOUT", 408;
    /// Another order holds the port.
    PortBusy = "PORT_BUSY", 409;
    /// The port reports a fault.
    PortFault = "PORT_FAULT", 409;
    /// The order's status does not allow this.
    OrderState = "ORDER_STATE", 409;
    /// The card is registered already.
    CardExists = "CARD_EXISTS", 409;
    /// The device has another open update, or this one has ended.
    TaskState = "TASK_STATE", 409;
    /// A key or an endpoint of this name exists, in the configuration or made by the API.
    NameTaken = "NAME_TAKEN", 409;
    /// It is of the configuration, and is changed there.
    ReadOnly = "READ_ONLY", 409;
    /// No key with the scope `admin` would be left.
    LastAdmin = "LAST_ADMIN", 409;
    /// The same idempotency key is being worked on.
    IdempotencyInProgress = "IDEMPOTENCY_IN_PROGRESS", 409;
    /// The body is longer than the limit.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", 413;
    /// A body that is not `application/json`.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415;
    /// The idempotency key was used with another body.
    IdempotencyMismatch = "IDEMPOTENCY_MISMATCH", 422;
    /// The key's token bucket is empty; `Retry-After` says for how long.
    RateLimited = "RATE_LIMITED", 429;
    /// Our fault.
    Internal = "INTERNAL", 500;
    /// Too many commands wait; `Retry-After` says when to try again.
    QueueOverloaded = "QUEUE_OVERLOADED", 503;
    /// The store or the API itself cannot answer now.
    NotReady = "NOT_READY", 503;
}

/// An error answer: a code, what was wrong and with which value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ApiError {
    pub code: ErrorCode,
    /// Lower case, no full stop, names the field, the limit and the value found.
    pub message: Cow<'static, str>,
    /// Machine-readable detail such as the order that holds a port; `Null` where there is none.
    pub data: Value,
    /// Seconds for the `Retry-After` header.
    pub retry_after_s: Option<u32>,
    /// Methods for the `Allow` header, comma-separated.
    pub allow: Option<String>,
    /// A status that differs from the code's own: 431 has no code in the table.
    status: Option<u16>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), data: Value::Null, retry_after_s: None, allow: None, status: None }
    }

    /// 400 `INVALID_PARAMETER`.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidParameter, message)
    }

    /// 431, for a head beyond the limits. It is reported as `INVALID_PARAMETER`: the codes name no head of their own.
    pub(super) fn head_too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: Some(431), ..Self::invalid(message) }
    }

    /// 405 with the methods the path does have.
    pub fn method_not_allowed(method: &str, path: &str, allow: String) -> Self {
        let message = format!("{path} does not take {method}, only {allow}");
        Self { allow: Some(allow), ..Self::new(ErrorCode::MethodNotAllowed, message) }
    }

    /// 503 `NOT_READY` with the seconds after which trying again makes sense.
    pub fn not_ready(message: impl Into<Cow<'static, str>>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(ErrorCode::NotReady, message) }
    }

    #[must_use]
    pub fn with_data(self, data: Value) -> Self {
        Self { data, ..self }
    }

    #[must_use]
    pub fn with_retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.code.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_words_with_error_statuses() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'));
            assert!((400..=503).contains(&code.status()));
            assert!(ErrorCode::ALL.iter().skip(index + 1).all(|other| other.as_str() != code.as_str()));
        }
        assert_eq!(ErrorCode::ALL.len(), 30);
    }

    #[test]
    fn error_text_names_code_and_cause() {
        assert_eq!(
            ApiError::invalid("port_no must be in 1..=255, got 0").to_string(),
            "INVALID_PARAMETER: port_no must be in 1..=255, got 0"
        );
    }
}
