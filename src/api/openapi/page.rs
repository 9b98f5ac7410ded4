//! The page at `/docs` and the document at `/openapi.json`, as they are sent.
//!
//! ```text
//! /docs ──relative──> docs/swagger-ui.css, docs/swagger-ui-bundle.js, docs/start.js ──> openapi.json
//! ```
//!
//! All of it is in the binary: the page works without any other host, and its policy allows none. Paths are relative, so a proxy may
//! put the gateway below a path of its own. Bytes and tags are made once.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};
use utoipa_swagger_ui::Config;

use crate::api::message::JSON;
use crate::api::route::RouteId;

const HTML: &str = include_str!("docs.html");
const START: &str = include_str!("docs.js");

/// Swagger UI makes pictures out of `data:`; else it needs nothing but this origin.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the documentation.
#[derive(Debug)]
pub struct File {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Changes with the bytes, quotes included.
    pub etag: String,
    /// The `Content-Security-Policy`, where it is a page.
    pub policy: Option<&'static str>,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl File {
    fn new(content_type: &'static str, policy: Option<&'static str>, bytes: Vec<u8>) -> Self {
        let hash = BASE64.encode(Sha256::digest(&bytes));
        Self { content_type, etag: format!("\"{}\"", hash.get(..27).unwrap_or_default()), policy, bytes }
    }

    /// One of Swagger UI's own.
    fn vendored(name: &str, content_type: &'static str) -> Self {
        let file = utoipa_swagger_ui::serve(name, Arc::new(Config::from("openapi.json")));
        let bytes = file.ok().flatten().map(|file| file.bytes.into_owned());
        debug_assert!(bytes.is_some(), "{name} is part of Swagger UI");
        Self::new(content_type, None, bytes.unwrap_or_default())
    }
}

/// The file of a route, `None` for routes that have none.
pub fn file(route: RouteId) -> Option<&'static File> {
    static DOCUMENT: LazyLock<File> =
        LazyLock::new(|| File::new(JSON, None, serde_json::to_vec(&super::document()).unwrap_or_default()));
    static PAGE: LazyLock<File> =
        LazyLock::new(|| File::new("text/html; charset=utf-8", Some(POLICY), HTML.as_bytes().to_vec()));
    static START_SCRIPT: LazyLock<File> = LazyLock::new(|| File::new(SCRIPT, None, START.as_bytes().to_vec()));
    static BUNDLE: LazyLock<File> = LazyLock::new(|| File::vendored("swagger-ui-bundle.js", SCRIPT));
    static STYLE: LazyLock<File> = LazyLock::new(|| File::vendored("swagger-ui.css", "text/css; charset=utf-8"));
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    match route {
        RouteId::OpenApi => Some(&DOCUMENT),
        RouteId::Docs => Some(&PAGE),
        RouteId::DocsStart => Some(&START_SCRIPT),
        RouteId::DocsBundle => Some(&BUNDLE),
        RouteId::DocsStyle => Some(&STYLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_there_and_no_longer_than_the_guard_relays() {
        for route in [RouteId::OpenApi, RouteId::Docs, RouteId::DocsStart, RouteId::DocsBundle, RouteId::DocsStyle] {
            let file = file(route).unwrap();
            assert!((100..2 << 20).contains(&file.bytes.len()), "{route:?} has {} bytes", file.bytes.len());
            assert_eq!((file.etag.len(), file.etag.matches('"').count()), (29, 2));
        }
    }

    #[test]
    fn the_page_asks_no_other_host() {
        for (name, text) in [("docs.html", HTML), ("docs.js", START)] {
            assert!(!text.contains("//"), "{name}: an address, or a comment");
        }
        assert!(!HTML.contains("<style") && !HTML.contains("style=") && !HTML.contains("</script><script>"));
    }
}
