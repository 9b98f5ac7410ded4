//! Which event types an endpoint wants.

/// One entry of `events`: `*` is every type, `order.*` every type of a family, anything else one type.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    All,
    /// With its dot.
    Family(String),
    One(String),
}

/// The patterns of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscription(Vec<Pattern>);

impl Subscription {
    /// `None`: no pattern, or one with `*` elsewhere than alone or behind a dot at the end.
    pub(super) fn new(patterns: &[String]) -> Option<Self> {
        let pattern = |text: &String| match text.strip_suffix('*') {
            Some("") => Some(Pattern::All),
            Some(family) => (family.ends_with('.') && family.len() > 1 && !family.contains('*'))
                .then(|| Pattern::Family(family.to_owned())),
            None => (!text.is_empty() && !text.contains('*')).then(|| Pattern::One(text.clone())),
        };
        let patterns: Vec<_> = patterns.iter().map(pattern).collect::<Option<_>>()?;
        (!patterns.is_empty()).then_some(Self(patterns))
    }

    pub(super) fn wants(&self, event_type: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::All => true,
            Pattern::Family(family) => event_type.starts_with(family.as_str()),
            Pattern::One(one) => event_type == one,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(patterns: &[&str], event_type: &str) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        Subscription::new(&patterns).unwrap().wants(event_type)
    }

    #[test]
    fn patterns_match_whole_words() {
        assert!(wants(&["*"], "device.heartbeat"));
        assert!(wants(&["port.status_changed", "order.*"], "order.created"));
        assert!(!wants(&["order.*"], "orders.created"));
        assert!(!wants(&["order.*"], "order"));
        assert!(wants(&["order.created"], "order.created"));
        assert!(!wants(&["order.created"], "order.created.late"));
        assert!(!wants(&["charging.started"], "charging.progress"));
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in [&[][..], &[""], &["order*"], &["*.created"], &[".*"], &["order.*.*"], &["order.*", ""]] {
            let patterns: Vec<_> = bad.iter().map(|&pattern| pattern.to_owned()).collect();
            assert_eq!(Subscription::new(&patterns), None, "{bad:?}");
        }
    }
}
