//! The reference of error codes as Markdown: `docs/api/errors.md`.

use super::{operation, routes};
use crate::api::error::ErrorCode;
use crate::api::route::ROUTES;

const HEAD: &str = "\
# Errors

Every error answer is

```json
{\"code\":409,\"error\":\"PORT_BUSY\",\"message\":\"port 1 of c0e1e404 is held by order THD6H0BG6NY8TR00\",\"data\":{\"order_no\":\"THD6H0BG6NY8TR00\"},\"request_id\":\"facc2fd87098e99e\",\"timestamp\":\"2026-11-23T00:14:13.528Z\"}
```

with its HTTP status as `code`. Branch on `error`: a code never changes its meaning. `message` is for people and names field, limit and
value. `data` is an object where the text below says so, else `null`. `request_id` leads to the gateway's log.

This page is made by `chargegate openapi --errors` from the table the gateway answers from.

| status | `error` |
|---|---|
";

/// The page: a section for each code.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    let status = |code: &ErrorCode| match code {
        ErrorCode::InvalidParameter => "400, 431".to_owned(),
        code => code.status().to_string(),
    };
    for code in ErrorCode::ALL {
        let word = code.as_str();
        page.push_str(&format!("| {} | [`{word}`](#{}) |\n", status(code), word.to_ascii_lowercase()));
    }
    for code in ErrorCode::ALL {
        let (word, cause, remedy) = (code.as_str(), code.cause(), code.remedy());
        page.push_str(&format!("\n## {word}\n\nStatus {}. {cause}\n\n**What to do.** {remedy}\n\n", status(code)));
        page.push_str(&answered_by(*code));
    }
    page
}

/// Which operations can answer with a code.
fn answered_by(code: ErrorCode) -> String {
    let (mut named, mut keyed, mut all) = (Vec::new(), true, true);
    for route in ROUTES {
        if routes::operation(route.id).codes(route).contains(&code) {
            named.push(format!("`{} {}`", route.method.as_str(), operation::shown(route.pattern)));
        } else {
            all = false;
            keyed &= route.scope.is_none();
        }
    }
    match (all, keyed) {
        (true, _) => "Any request can be answered so.\n".to_owned(),
        (false, true) => "Any request that needs a key can be answered so.\n".to_owned(),
        (false, false) if named.len() > NAMED_MAX => {
            format!("{} operations can be answered so; each lists its codes.\n", named.len())
        }
        (false, false) => format!("Answered by {}.\n", named.join(", ")),
    }
}

/// Operations that are listed by name.
const NAMED_MAX: usize = 12;
