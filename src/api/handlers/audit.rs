//! The audit trail of operators: every change that takes the scope `admin` is a log line of its own target, at `info`.
//!
//! A line names the key, the request and the action; the request id leads to the access log and to whatever the action logs
//! itself. What an action reads is no change and has no line. Secrets never come here: `subject` is a name, a number or a state.

use std::fmt::Display;

use super::call::Call;

/// The target of audit lines, for those who keep them apart.
const TARGET: &str = "chargegate::audit";

/// Says that an operator's change is made: once it took effect, before the answer. `action` is a word as `drain` or
/// `webhook.redrive`; `subject` says what was changed, or what it is now.
pub(super) fn done(call: &Call, action: &'static str, subject: impl Display) {
    log::info!(
        target: TARGET,
        key = call.caller.as_deref().unwrap_or("-"), request_id = call.request_id(), action, subject:% = subject;
        "operator's change"
    );
}
