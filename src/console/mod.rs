//! The operators' console: one HTML page, put together from its files when the gateway is compiled.
//!
//! It has everything in it, style and script, and loads nothing but the API's JSON. The policy it is sent with lets exactly this
//! style and this script run, by their hashes; nothing inline, nothing from elsewhere, no frame around it.
//!
//! | file | |
//! |---|---|
//! | `head.html`, `body.html` | the document without style and script |
//! | `console.css` | both themes, phone to wide screen |
//! | `js/dom.js` | elements, lists in place, numbers and times; data reaches the page as text only |
//! | `js/session.js` | the key, in memory; requests, signed where the key must |
//! | `js/page.js` | navigation, search, keyboard, dialogs, polling |
//! | `js/chart.js`, other `js/*.js` | lines over ten minutes; a file per view |

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

macro_rules! script {
    () => {
        concat!(
            "\n",
            include_str!("js/dom.js"),
            include_str!("js/session.js"),
            include_str!("js/page.js"),
            include_str!("js/chart.js"),
            include_str!("js/overview.js"),
            include_str!("js/devices.js"),
            include_str!("js/orders.js"),
            include_str!("js/webhooks.js"),
            include_str!("js/keys.js"),
            include_str!("js/help.js"),
            include_str!("js/start.js"),
        )
    };
}

/// The page as it is sent.
const HTML: &str = concat!(
    include_str!("head.html"),
    "<style>",
    include_str!("console.css"),
    "</style>\n",
    include_str!("body.html"),
    "<script type=\"module\">",
    script!(),
    "</script>\n</body>\n</html>\n"
);
const STYLE: &str = include_str!("console.css");
const SCRIPT: &str = script!();

/// The page and what goes into its headers.
#[derive(Debug)]
pub struct Page {
    /// The whole document.
    pub html: &'static str,
    /// Changes with the document, quotes included.
    pub etag: String,
    /// Allows this style, this script and requests to the same origin, and nothing else.
    pub content_security_policy: String,
}

/// The console's page; hashed once.
pub fn page() -> &'static Page {
    static PAGE: LazyLock<Page> = LazyLock::new(|| {
        let hash = |text: &str| BASE64.encode(Sha256::digest(text));
        Page {
            html: HTML,
            etag: format!("\"{}\"", hash(HTML).get(..27).unwrap_or_default()),
            content_security_policy: format!(
                "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
                hash(SCRIPT),
                hash(STYLE)
            ),
        }
    });
    &PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        assert!(HTML.starts_with("<!doctype html>"));
        let counted = |tag: &str| HTML.matches(tag).count();
        assert_eq!(["<script", "</script", "<style", "</style"].map(counted), [1; 4], "no file ends another");
        // Names of XML languages look like addresses, and nobody asks them.
        let known = ["http://www.w3.org/2000/svg"];
        let foreign = |scheme: &str| {
            let mut found = HTML.match_indices(scheme).map(|(at, _)| HTML.get(at..).unwrap_or_default());
            found.any(|rest| !known.iter().any(|known| rest.starts_with(known)) && !rest.starts_with("https://'"))
        };
        assert!(!foreign("http://") && !foreign("https://"));
        assert!(!["@import", "url(", "src=", " style="].iter().any(|loads| HTML.contains(loads)));
    }

    #[test]
    fn data_reaches_the_page_as_text() {
        let ways_in =
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"];
        assert_eq!(ways_in.into_iter().find(|way| SCRIPT.contains(way)), None);
    }

    #[test]
    fn the_policy_names_what_the_page_has() {
        let Page { html, etag, content_security_policy: policy } = page();
        let between = |from: &str, to: &str| {
            let begin = html.find(from).expect("it is there") + from.len();
            html.get(begin..html.rfind(to).expect("it is there")).expect("in this order")
        };
        for text in [between("<script type=\"module\">", "</script>"), between("<style>", "</style>")] {
            assert!(policy.contains(&format!("'sha256-{}'", BASE64.encode(Sha256::digest(text)))));
        }
        assert!(etag.len() > 20 && etag.starts_with('"') && etag.ends_with('"'));
    }
}
