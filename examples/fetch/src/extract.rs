//! `--extract-…`.

/// What to look for in a page.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Rule {
    /// Every match: its first group, or all of it.
    Regex(String),
    /// Every element's text, or an attribute's value.
    Css { selector: String, attribute: Option<String> },
}
