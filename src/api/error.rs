//! Every error code the API can answer with, and the error value that carries one.

use std::borrow::Cow;

use serde_json::Value;

macro_rules! error_codes {
    ($($variant:ident = $text:literal, $status:literal, $cause:literal, $remedy:literal;)*) => {
        /// The `error` member of an error answer. Clients branch on it, so a code never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode {
            $(#[doc = $cause] $variant,)*
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

            /// What brings it about, and what `data` holds then: whole sentences.
            pub const fn cause(self) -> &'static str {
                match self {
                    $(Self::$variant => $cause,)*
                }
            }

            /// What the caller can do about it: whole sentences.
            pub const fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)*
                }
            }
        }
    };
}

error_codes! {
    InvalidParameter = "INVALID_PARAMETER", 400,
        "A value in path, query, header or body is missing, unknown, given twice or out of range, or the request is not HTTP. \
         `message` names the field, what it must be and the value found. Status 431 carries this code too: the head of the \
         request is longer than 8 KiB.",
        "Correct the request; sent again as it is, it is refused again.";
    DeviceOffline = "DEVICE_OFFLINE", 400,
        "The device has no connection, its score is below 50, or its number is one that modules without a number of their own \
         share. No order was made.",
        "Try again after `device.online` came for this device, or when `GET /devices/{device}/status` says `online`.";
    NotSupported = "NOT_SUPPORTED", 400,
        "The device's protocol, or its model, has no such mode, command, parameter or option; or `card_no` was given and this \
         gateway keeps no card accounts.",
        "Choose what the protocol has: `message` lists it where there is a list.";
    Unauthorized = "UNAUTHORIZED", 401,
        "`X-Api-Key` is missing or names no key, or the key must sign and the signature, its timestamp or its nonce does not hold.",
        "Check the key. For signed requests check the clock (300 s at most off), use a new nonce for each attempt, and compare \
         your signature with that of `chargegate sign`.";
    InsufficientBalance = "INSUFFICIENT_BALANCE", 402,
        "The free balance of `card_no` does not cover what the charge can cost. `data` has `free_cent` and `needed_cent`. No \
         order was made.",
        "Recharge the card, or order less.";
    Forbidden = "FORBIDDEN", 403,
        "The key is good but not for this: it lacks the scope, or may not be used from this address.",
        "Use a key with the scope this operation names, or have the key's scopes or addresses changed.";
    NotFound = "NOT_FOUND", 404,
        "There is no such path; or no such command, firmware, socket, key, endpoint, connection, anomaly or instance; or another \
            instance, which `data.instance` names, has the connection that is asked for.",
        "Check the path and the id or name in it.";
    DeviceNotFound = "DEVICE_NOT_FOUND", 404,
        "No device with this id ever connected, and none was registered.",
        "Check the id. A device that is yet to come is registered by `POST /devices/{device}`.";
    PortNotFound = "PORT_NOT_FOUND", 404,
        "The device has reported no port of this number.",
        "Look at `ports` of the device.";
    OrderNotFound = "ORDER_NOT_FOUND", 404,
        "There is no order of this number, it is not of this device or port, or nothing runs on the port.",
        "Check the number. Nothing is left to be stopped.";
    TaskNotFound = "TASK_NOT_FOUND", 404,
        "There is no update with this id.",
        "Look it up in `GET /ota`.";
    CardNotFound = "CARD_NOT_FOUND", 404,
        "The card is not registered.",
        "Register it with `POST /cards`.";
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405,
        "The path exists with other methods, which the header `Allow` names.",
        "Use one of them.";
    RequestTimeout = "REQUEST_TIMEOUT", 408,
        "The head of the request (5 s) or its body (10 s, an image `ota.upload_timeout`) did not arrive in time. Nothing was done.",
        "Send it again, and faster.";
    PortBusy = "PORT_BUSY", 409,
        "Another order holds the port: `data.order_no` is its number, `null` where the port charges for no order of this gateway.",
        "Wait until that order ends, or stop it.";
    PortFault = "PORT_FAULT", 409,
        "The port reports a fault; `data.raw_status` is what it says.",
        "Use another port, and have this one looked at.";
    OrderState = "ORDER_STATE", 409,
        "The order's status does not allow this. `data` has `order_no`, `status` and `status_text`.",
        "Read the order: most likely it has ended.";
    CardExists = "CARD_EXISTS", 409,
        "The card is registered already.",
        "Change it with `POST /cards/{card}`.";
    TaskState = "TASK_STATE", 409,
        "The device has another open update, or this one has ended. `data` has `task_id`, `state` and `state_text`.",
        "Wait until the update ends, or cancel it.";
    NameTaken = "NAME_TAKEN", 409,
        "A key or an endpoint of this name exists.",
        "Choose another name, or change the one that exists.";
    ReadOnly = "READ_ONLY", 409,
        "The key or endpoint is of the configuration file, which the API does not change.",
        "Change it in the file and reload.";
    LastAdmin = "LAST_ADMIN", 409,
        "No key with the scope `admin` would be left, and nobody could make one.",
        "Make another key with the scope `admin` first.";
    IdempotencyInProgress = "IDEMPOTENCY_IN_PROGRESS", 409,
        "The first request with this `Idempotency-Key` is being worked on.",
        "Send it again after `Retry-After`: the answer is then that of the first.";
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", 413,
        "The body is longer than `http.body_bytes_max` (64 KiB), an image longer than `ota.firmware_max` (8 MiB).",
        "Send less.";
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415,
        "The body is not `application/json`.",
        "Send JSON, with `Content-Type: application/json`.";
    IdempotencyMismatch = "IDEMPOTENCY_MISMATCH", 422,
        "This `Idempotency-Key` was used for the same path with another body.",
        "Use a new key for a new request, and the first body for a repetition.";
    RateLimited = "RATE_LIMITED", 429,
        "The requests of this key, or of all keys together, come faster than the configuration allows; or this address failed to authenticate too often; or the documentation is asked for too often.",
        "Wait for the seconds in `Retry-After`.";
    Internal = "INTERNAL", 500,
        "The gateway is at fault. Its log tells more under the `request_id` of the answer.",
        "Report it with the `request_id`. Before sending a change again, look whether it was made.";
    QueueOverloaded = "QUEUE_OVERLOADED", 503,
        "Too many commands wait, in all or for this device. Stop and cancel are never refused so. Nothing was done.",
        "Wait for the seconds in `Retry-After`.";
    NotReady = "NOT_READY", 503,
        "The store, the other instances or the API itself cannot answer now. An order that is refused so was not made, unless \
         `message` says that its outcome is unknown.",
        "Wait for the seconds in `Retry-After`. Send a change again with the same `Idempotency-Key`, or look whether it was made.";
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
            assert!(
                [code.cause(), code.remedy()].iter().all(|text| text.ends_with('.') && !text.contains("  ")),
                "{code:?}"
            );
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
