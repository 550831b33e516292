//! `--extract-…`: looks for something in pages, in worker processes.
//!
//! A page is given by strangers. If it takes the parser too long, too much memory, or down, that is the end of a worker
//! and of nothing else: its record says so, and the pool starts another one. The rule travels with each page and is
//! compiled once in each worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252, X_USER_DEFINED};
use polypool::{ExecutorExt as _, ProcessPool, TaskError, TaskOptions};
use regex::Regex;
use scraper::{Html, Selector};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::output::LONGEST_IN_MEMORY;
use crate::output::record::{Failure, Kind};
use crate::settings::ExtractSettings;

/// The most that is taken from one page: it ends up in a line of the records.
const MOST_TEXT: usize = 1024 * 1024;

/// What to look for in a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rule {
    /// Every match: its first group, or all of it.
    Regex(String),
    /// Every element's text, or an attribute's value.
    Css { selector: String, attribute: Option<String> },
}

/// A body to extract from.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) bytes: Bytes,
    /// The character set that the server named.
    pub(crate) charset: Option<String>,
    /// It was too long and isn't here.
    pub(crate) is_cut: bool,
}

/// Runs a rule on pages.
#[derive(Clone, Debug)]
pub(crate) struct Extractor {
    pool: ProcessPool,
    rule: Rule,
    timeout: Duration,
}

impl Rule {
    /// Whether it is one: the message says what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.compile().map(|_| ())
    }

    fn compile(&self) -> Result<Compiled, String> {
        match self {
            Rule::Regex(pattern) => {
                // The crate limits how large it may become.
                Ok(Compiled::Regex(Regex::new(pattern).map_err(|error| error.to_string())?))
            }
            Rule::Css { selector, attribute } => {
                let parsed =
                    Selector::parse(selector).map_err(|error| format!("{selector:?} is no selector: {error}"))?;
                Ok(Compiled::Css(parsed, attribute.clone()))
            }
        }
    }
}

impl Extractor {
    /// A pool, whose workers start when there is something for them to do.
    pub(crate) fn new(settings: &ExtractSettings) -> anyhow::Result<Self> {
        let pool = ProcessPool::builder().workers(settings.workers.max(1)).name_prefix("fetch-extract");
        #[cfg(unix)]
        let pool = pool.initializer(outlive_interruption {});
        let pool = pool.build()?;
        Ok(Extractor { pool, rule: settings.rule.clone(), timeout: settings.timeout })
    }

    /// What the rule finds in a page.
    pub(crate) async fn run(&self, page: Page) -> Result<Vec<String>, Failure> {
        let failure = |message| Failure { kind: Kind::Extract, message };
        if page.is_cut {
            return Err(failure(format!(
                "the page is longer than {LONGEST_IN_MEMORY} bytes, the most to extract from"
            )));
        }
        let task = find { rule: self.rule.clone(), page: ByteBuf::from(page.bytes), charset: page.charset };
        match self.pool.submit_with(task, TaskOptions::new().timeout(self.timeout)).await {
            Ok(found) => found.map_err(failure),
            Err(TaskError::TimedOut { after }) => Err(failure(format!(
                "extraction took longer than {} (--extract-timeout)",
                humantime::format_duration(after)
            ))),
            Err(error) => Err(failure(error.to_string())),
        }
    }
}

/// Ctrl-C reaches the workers as well, and what runs may still finish then.
#[cfg(unix)]
#[polypool::task]
fn outlive_interruption() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    let _within = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        // Whoever has asked for a signal once does not die of it any more, even if nobody listens.
        drop(signal(kind).map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// The work of a worker.
#[polypool::task]
fn find(rule: Rule, page: ByteBuf, charset: Option<String>) -> Result<Vec<String>, String> {
    thread_local! {
        /// The last rule. A run has only one.
        static COMPILED: RefCell<Option<(Rule, Rc<Compiled>)>> = const { RefCell::new(None) };
    }
    let compiled = COMPILED.with_borrow_mut(|known| match known {
        Some((of, compiled)) if *of == rule => Ok(Rc::clone(compiled)),
        _ => rule.compile().map(|compiled| Rc::clone(&known.insert((rule, Rc::new(compiled))).1)),
    })?;
    let (text, _, _) = encoding(&page, charset.as_deref()).decode(&page);
    compiled.find(&text)
}

/// What a page is written in: what the server says; UTF-8, if it can be read as that; then what the page says near its
/// start. (HTML, 13.2.3.2, has the last two the other way round, for those who see a page only in part.) A byte-order
/// mark, which `decode` sees, counts for more than all of them.
fn encoding(page: &[u8], charset: Option<&str>) -> &'static Encoding {
    static META: LazyLock<regex::bytes::Regex> = LazyLock::new(|| {
        let pattern = r#"(?is-u)<!--.*?-->|<meta[^>]*?[\s"';]charset\s*=\s*["']?\s*([^\s"'/>;]+)"#;
        regex::bytes::Regex::new(pattern).expect("it is well-formed")
    });
    // What it stands for is unknown or not safe to read.
    let known = |label: &[u8]| Encoding::for_label_no_replacement(label);
    if let Some(encoding) = charset.and_then(|label| known(label.as_bytes())) {
        return encoding;
    }
    if str::from_utf8(page).is_ok() {
        return UTF_8;
    }
    let start = &page[..page.len().min(1024)];
    let label = META.captures_iter(start).find_map(|found| found.get(1));
    match label.and_then(|label| known(label.as_bytes())) {
        // In either, the label could not have been found.
        Some(encoding) if encoding == UTF_16LE || encoding == UTF_16BE => UTF_8,
        Some(encoding) if encoding == X_USER_DEFINED => WINDOWS_1252,
        Some(encoding) => encoding,
        None => UTF_8,
    }
}

/// The character set in a `Content-Type`.
pub(crate) fn charset(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    Some(value.trim().trim_matches(['"', '\'']))
}

/// A rule that is ready for use.
#[derive(Debug)]
enum Compiled {
    Regex(Regex),
    Css(Selector, Option<String>),
}

impl Compiled {
    fn find(&self, page: &str) -> Result<Vec<String>, String> {
        match self {
            Compiled::Regex(regex) => collect(regex.captures_iter(page).filter_map(|found| {
                let part = if regex.captures_len() > 1 { found.get(1) } else { found.get(0) };
                part.map(|part| part.as_str().to_owned())
            })),
            Compiled::Css(selector, attribute) => {
                let html = Html::parse_document(page);
                collect(html.select(selector).filter_map(|element| match attribute {
                    Some(name) => element.attr(name).map(str::to_owned),
                    None => Some(element.text().collect::<String>().trim().to_owned()),
                }))
            }
        }
    }
}

fn collect(found: impl Iterator<Item = String>) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    let mut size = 0;
    for text in found {
        size += text.len() + size_of::<String>();
        if size > MOST_TEXT {
            return Err(format!("more than {MOST_TEXT} bytes were found: look for something more particular"));
        }
        texts.push(text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    polypool::worker_hook!();

    fn css(selector: &str, attribute: Option<&str>) -> Rule {
        Rule::Css { selector: selector.into(), attribute: attribute.map(str::to_owned) }
    }

    fn run(rule: &Rule, page: &[u8]) -> Result<Vec<String>, String> {
        find(rule.clone(), ByteBuf::from(page), None)
    }

    #[test]
    fn what_rules_find() {
        let page = "<title> A &amp; B </title><p class=x>one<b>two</b></p><a href='/1'>n</a><a>m</a>".as_bytes();
        let found = |rule: &Rule| run(rule, page).unwrap();
        assert_eq!(found(&css("title", None)), ["A & B"]);
        assert_eq!(found(&css("p.x", None)), ["onetwo"]);
        assert_eq!(found(&css("a", Some("href"))), ["/1"]);
        assert_eq!(found(&Rule::Regex("<(b|title)>".into())), ["title", "b"]);
        assert_eq!(found(&Rule::Regex("[a-z]+='.*?'".into())), ["href='/1'"]);
        assert_eq!(found(&Rule::Regex("x(y)?".into())), [""; 0], "a group that took no part");
        assert_eq!(run(&Rule::Regex("a.b".into()), b"a\xffb").unwrap(), ["a\u{fffd}b"]);
    }

    #[test]
    fn pages_are_read_in_their_own_character_set() {
        let all = Rule::Regex("^.*$".into());
        let read = |page: &[u8], charset: Option<&str>| {
            find(all.clone(), ByteBuf::from(page), charset.map(str::to_owned)).unwrap().concat()
        };
        assert_eq!(read(b"caf\xe9", Some("ISO-8859-1")), "caf\u{e9}");
        assert_eq!(read(b"caf\xe9", Some("no-such")), "caf\u{fffd}");
        assert_eq!(read(b"\xef\xbb\xbfcaf\xc3\xa9", Some("latin1")), "caf\u{e9}", "a mark comes first");
        for head in [
            "<meta charset=windows-1251>",
            "<META CHARSET='Windows-1251'/>",
            "<meta http-equiv=\"Content-Type\" content=\"text/html; charset=windows-1251\">",
        ] {
            let page = [head.as_bytes(), b"\xcf"].concat();
            assert_eq!(read(&page, None), format!("{head}\u{41f}"), "{head}");
            assert_eq!(read(&page, Some("latin1")), format!("{head}\u{cf}"), "the server knows better");
        }
        for page in [
            "<meta charset=latin1>caf\u{e9}".as_bytes(),
            b"plain",
            "<!-- <meta charset=koi8-r> --><meta charset='x-user-defined'>".as_bytes(),
        ] {
            assert_eq!(read(page, Some("hz-gb-2312")), str::from_utf8(page).unwrap());
        }
        let page = b"<!-- <meta charset=koi8-r> --><meta charset=x-user-defined content='; charset=koi8-r'>\xe9";
        assert!(read(page, None).ends_with('\u{e9}'));
        assert_eq!(read("<meta charset=utf-16>\u{41f}".as_bytes(), None), "<meta charset=utf-16>\u{41f}");
        let late = [&[b' '; 1024][..], b"<meta charset=latin1>\xe9"].concat();
        assert!(read(&late, None).ends_with('\u{fffd}'));
    }

    #[test]
    fn a_content_type_names_the_character_set() {
        for (content_type, expected) in [
            ("text/html; charset=utf-8", Some("utf-8")),
            ("text/html;Charset=\"latin1\" ; a=b", Some("latin1")),
            ("text/html; a=b; charset = koi8-r", Some("koi8-r")),
            ("text/html", None),
            ("charset=x", None),
            ("", None),
        ] {
            assert_eq!(charset(content_type), expected, "{content_type}");
        }
    }

    #[test]
    fn bad_rules_are_told() {
        for rule in [Rule::Regex("(".into()), Rule::Regex("(a{1,1000}){1,1000}".into()), css("p[", None)] {
            let message = rule.check().unwrap_err();
            assert!(!message.is_empty() && run(&rule, b"") == Err(message), "{rule:?}");
        }
    }

    #[test]
    fn what_is_found_is_bounded() {
        let page = "a".repeat(100_000);
        assert!(run(&Rule::Regex("a".into()), page.as_bytes()).unwrap_err().contains("more than"));
    }
}
