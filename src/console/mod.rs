//! The operators' console: one HTML page, put together from three files when the gateway is compiled.
//!
//! It has everything in it, style and script, and loads nothing but the API's JSON. The policy it is sent with lets exactly this
//! style and this script run, by their hashes; nothing inline, nothing from elsewhere, no frame around it.
//!
//! | file | |
//! |---|---|
//! | `console.html` | head, the frame of the page, the icons |
//! | `console.css` | both themes, phone to wide screen |
//! | `console.js` | views, keyboard, charts; data reaches the page as text nodes only |

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

/// The page as it is sent.
const HTML: &str = concat!(
    include_str!("console.html"),
    "<style>",
    include_str!("console.css"),
    "</style>\n<script type=\"module\">",
    include_str!("console.js"),
    "</script>\n</body>\n</html>\n"
);
const STYLE: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");

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
        let html = page().html;
        assert_eq!(html.matches("<script").count(), 1, "what is inside the script must not end it");
        assert_eq!((html.matches("</script").count(), html.matches("</style").count()), (1, 1));
        assert!(html.starts_with("<!doctype html>"));
        for foreign in ["http://", "https://", "src=", "@import", "url(", " style=\"", " on"] {
            let found = html.match_indices(foreign).find(|(at, _)| {
                let rest = html.get(*at..).unwrap_or_default();
                // Names of XML languages are addresses that nobody asks; words begin with "on" as well.
                match foreign {
                    "http://" => !rest.starts_with("http://www.w3.org/"),
                    " on" => {
                        rest.split('=')
                            .next()
                            .is_some_and(|name| name.len() < 16 && name[1..].bytes().all(|b| b.is_ascii_lowercase()))
                            && rest.contains("=\"")
                            && rest.find("=\"") < rest.find(['>', '\n', ' '])
                    }
                    _ => true,
                }
            });
            assert_eq!(found.map(|(at, _)| html.get(at..(at + 60).min(html.len()))), None, "{foreign}");
        }
    }

    #[test]
    fn data_reaches_the_page_as_text() {
        for way_in in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "localStorage",
            "sessionStorage",
            "document.cookie",
        ] {
            assert!(!SCRIPT.contains(way_in), "{way_in}");
        }
    }
}
