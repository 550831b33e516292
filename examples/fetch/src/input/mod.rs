//! The rows: from the command line, from files and from standard input, one after the other, read as they are asked
//! for.
//!
//! ```text
//! Source ──► Reader (lines, csv, jsonl) ──► Draft ──► template ──► duplicates ──► Row
//! ```
//!
//! Nothing is kept but the row at hand, and with `--dedupe` or `--names id` hashes of each row. What is wrong with a
//! row becomes part of it, with file and line; only an input that can't be read any further is an error of the
//! iterator. Fetching, and the order in which rows are fetched, are the engine's.

mod csv;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod header;
mod jsonl;
mod lines;
mod template;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Url};

use self::csv::Table;
use self::lines::{Line, Lines};
use self::template::Template;
use crate::request::{BadRow, Payload, Request, Row};
use crate::settings::{InputFormat, InputSettings};

/// What the HTTP library takes; longer ones it refuses without saying why.
const LONGEST_URL: usize = 65_000;

/// All rows, in the order of the input.
pub(crate) struct Rows {
    settings: Arc<InputSettings>,
    /// Those not begun, the next one last.
    sources: Vec<Source>,
    current: Option<Current>,
    number: u64,
    seen: Option<Seen>,
    ids: Option<Ids>,
    duplicates: Arc<AtomicU64>,
}

/// The source under way.
struct Current {
    name: String,
    /// Where file bodies are looked for.
    directory: PathBuf,
    reader: Reader,
    /// A template of it that has URLs left.
    template: Option<Template>,
}

impl Rows {
    /// Looks at every source, so that a name that is wrong is known before anything is sent. With `strict` it also
    /// reads all of them, standard input by way of a temporary file, and names the bad rows.
    ///
    /// # Errors
    ///
    /// A file that can't be read, a table without the column, with `strict` a bad row; they name the flag.
    pub(crate) fn open(settings: &InputSettings) -> Result<Self> {
        let sources = Source::all(settings)?;
        let rows = |sources| Rows {
            settings: Arc::new(settings.clone()),
            sources,
            current: None,
            number: 0,
            seen: settings.dedupe.then(Seen::default),
            ids: settings.own_ids.then(Ids::default),
            duplicates: Arc::default(),
        };
        for source in &sources {
            source.check(settings)?;
        }
        if !settings.strict {
            return Ok(rows(sources));
        }
        let sources = sources.into_iter().map(Source::spooled).collect::<Result<Vec<_>>>()?;
        let again = sources.iter().map(Source::again).collect::<Result<Vec<_>>>()?;
        check_all(rows(sources))?;
        Ok(rows(again))
    }

    /// How many rows `--dedupe` has left out so far.
    pub(crate) fn duplicates(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.duplicates)
    }

    /// How many rows there will be, duplicates included, if that can be told quickly and without losing any.
    pub(crate) fn total(settings: &InputSettings) -> Option<u64> {
        let sources = Source::all(settings).ok()?;
        sources.iter().try_fold(0_u64, |sum, source| sum.checked_add(source.count(settings)?))
    }

    /// The next draft, and what it is called in messages; templates not expanded.
    fn read(&mut self) -> Option<Result<Result<Draft, Bad>>> {
        loop {
            if self.current.is_none() {
                match self.sources.pop()?.open(&self.settings) {
                    Ok(current) => self.current = Some(current),
                    Err(error) => return Some(Err(error)),
                }
            }
            let current = self.current.as_mut()?;
            if let Some(template) = &mut current.template {
                if let Some(url) = template.next() {
                    return Some(Ok(Ok(Draft::of(url))));
                }
                current.template = None;
            }
            let draft = match current.reader.next() {
                Err(error) => return Some(Err(anyhow!(error).context(format!("can't read {}", current.name)))),
                Ok(None) => {
                    self.current = None;
                    continue;
                }
                Ok(Some(draft)) => draft,
            };
            match draft {
                Ok(draft) if self.settings.templates && current.reader.has_templates() => {
                    match Template::parse(&draft.url) {
                        Ok(None) => return Some(Ok(Ok(draft))),
                        Ok(Some(template)) => current.template = Some(template),
                        Err(why) => return Some(Ok(Err(Bad::new(draft.url, why)))),
                    }
                }
                draft => return Some(Ok(draft)),
            }
        }
    }

    /// The request of a draft, with what the command line says for all of them.
    fn request(&self, draft: Draft) -> Result<Arc<Request>, Bad> {
        let defaults = &self.settings.defaults;
        let mut url = match url(&draft.url, self.settings.base.as_ref()) {
            Ok(url) => url,
            Err(why) => return Err(Bad::new(draft.url, why)),
        };
        if let Some(query) = &defaults.query {
            let query = url.query().map_or_else(|| query.clone(), |old| format!("{old}&{query}"));
            url.set_query(Some(&query));
        }
        let mut headers = defaults.headers.clone();
        for (name, values) in draft.headers {
            headers.remove(&name);
            for value in values {
                // Fails for more names than a map of them takes, some 24,000.
                if headers.try_append(&name, value).is_err() {
                    return Err(Bad::new(draft.url, "the row has too many headers"));
                }
            }
        }
        let body = match draft.body {
            Some(Payload::File(path)) => match self.file(&path) {
                Ok(path) => Payload::File(path),
                Err(why) => return Err(Bad::new(draft.url, why)),
            },
            Some(body) => body,
            // Not with a row that asks for what has no body.
            None if matches!(draft.method, Some(Method::GET | Method::HEAD)) => Payload::None,
            None => defaults.body.clone(),
        };
        let method = match draft.method {
            Some(method) => method,
            // As in curl: who gives a body wants it sent.
            None if defaults.method == Method::GET && body != Payload::None => Method::POST,
            None => defaults.method.clone(),
        };
        Ok(Arc::new(Request { url, method, headers, body, timeout: draft.timeout }))
    }

    /// A file that a row wants sent.
    fn file(&self, path: &Path) -> Result<PathBuf, String> {
        if !self.settings.file_bodies {
            return Err(
                "files of this machine are not sent with --deny-private: the rows may be somebody else's".into()
            );
        }
        let path = self.current.as_ref().map_or_else(|| path.to_owned(), |current| current.directory.join(path));
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(path),
            Ok(_) => Err(format!("the body {} is not a regular file", path.display())),
            Err(error) => Err(format!("the body {} can't be read: {error}", path.display())),
        }
    }

    /// Names the place in front of what is wrong there.
    fn bad_row(&self, bad: Bad) -> BadRow {
        let (name, place) = match &self.current {
            Some(current) => (current.name.as_str(), current.reader.place()),
            None => ("", 0),
        };
        let between = if matches!(name, Source::ARGUMENT) { ' ' } else { ':' };
        BadRow { url: harmless(&bad.url), message: format!("{name}{between}{place}: {}", bad.why) }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let draft = match self.read()? {
                Ok(draft) => draft,
                Err(error) => {
                    // What comes after it is not read: nobody could tell what is missing.
                    (self.sources, self.current) = (Vec::new(), None);
                    return Some(Err(error));
                }
            };
            let (id, mut content) = match draft {
                Ok(mut draft) => (draft.id.take(), self.request(draft)),
                Err(mut bad) => (bad.id.take(), Err(bad)),
            };
            if let (Some(seen), Ok(request)) = (&mut self.seen, &content)
                && !seen.is_new(request)
            {
                self.duplicates.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if let (Some(ids), Some(id), Ok(request)) = (&mut self.ids, &id, &content)
                && !ids.is_own(id, request)
            {
                let why = format!("the id {id:?} is that of another request: with --names id each needs its own");
                content = Err(Bad::new(request.url.as_str(), why));
            }
            self.number += 1;
            return Some(Ok(Row { number: self.number, id, content: content.map_err(|bad| self.bad_row(bad)) }));
        }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A row as a reader gives it.
#[derive(Debug, Default)]
struct Draft {
    url: String,
    id: Option<Box<str>>,
    method: Option<Method>,
    headers: HeaderLines,
    body: Option<Payload>,
    timeout: Option<Duration>,
}

/// What a row says of headers; a name without values takes away that of the command line.
type HeaderLines = Vec<(HeaderName, Vec<HeaderValue>)>;

impl Draft {
    fn of(url: impl Into<String>) -> Self {
        Draft { url: url.into(), ..Draft::default() }
    }
}

/// What is wrong with a row.
#[derive(Debug)]
struct Bad {
    url: String,
    /// What the row calls itself, if that is known.
    id: Option<Box<str>>,
    why: String,
}

impl Bad {
    fn new(url: impl Into<String>, why: impl Into<String>) -> Self {
        Bad { url: url.into(), id: None, why: why.into() }
    }
}

/// Where rows come from.
#[derive(Debug)]
enum Source {
    Arguments(Vec<String>),
    File {
        path: PathBuf,
        format: InputFormat,
    },
    /// The file has what came, if it had to be read before.
    Stdin {
        format: InputFormat,
        spool: Option<File>,
    },
}

impl Source {
    const ARGUMENT: &str = "argument";

    /// The last one comes first.
    fn all(settings: &InputSettings) -> Result<Vec<Self>> {
        let file = |path: &PathBuf| {
            let format = format(settings.format, path);
            if path == Path::new("-") {
                Source::Stdin { format, spool: None }
            } else {
                Source::File { path: path.clone(), format }
            }
        };
        let arguments = [Source::Arguments(settings.urls.clone())];
        let mut all: Vec<_> = arguments.into_iter().chain(settings.files.iter().map(file)).collect();
        let inputs = all.iter().filter(|source| matches!(source, Source::Stdin { .. })).count();
        ensure!(inputs < 2, "--from: standard input can be read only once");
        all.reverse();
        Ok(all)
    }

    /// Finds early what can be found without losing anything.
    fn check(&self, settings: &InputSettings) -> Result<()> {
        let Source::File { path, format } = self else { return Ok(()) };
        let unreadable = || format!("--from can't read {}", path.display());
        let metadata = path.metadata().with_context(unreadable)?;
        ensure!(!metadata.is_dir(), "{}: it is a directory", unreadable());
        if metadata.is_file() {
            let file = File::open(path).with_context(unreadable)?;
            Reader::new(Box::new(BufReader::new(file)), *format, settings, &path.display().to_string())?;
        }
        Ok(())
    }

    /// Standard input goes into a temporary file, to be read twice.
    fn spooled(self) -> Result<Self> {
        let Source::Stdin { format, spool: None } = self else { return Ok(self) };
        let spool = || {
            let mut file = tempfile::tempfile()?;
            io::copy(&mut io::stdin(), &mut file)?;
            io::Result::Ok(file)
        };
        let spool = spool().context("--strict can't keep standard input in a temporary file")?;
        Ok(Source::Stdin { format, spool: Some(spool) })
    }

    /// The same once more. Both are read one after the other, each from its beginning.
    fn again(&self) -> Result<Self> {
        Ok(match self {
            Source::Arguments(urls) => Source::Arguments(urls.clone()),
            Source::File { path, format } => Source::File { path: path.clone(), format: *format },
            Source::Stdin { format, spool } => {
                Source::Stdin { format: *format, spool: spool.as_ref().map(File::try_clone).transpose()? }
            }
        })
    }

    fn open(self, settings: &InputSettings) -> Result<Current> {
        const CAPACITY: usize = 64 << 10;
        let current = |name: String, directory: PathBuf, reader| Current { name, directory, reader, template: None };
        let reader = |input: Box<dyn Read + Send>, format, name: &str| {
            Reader::new(Box::new(BufReader::with_capacity(CAPACITY, input)), format, settings, name)
        };
        match self {
            Source::Arguments(urls) => {
                Ok(current(Self::ARGUMENT.into(), PathBuf::new(), Reader::Arguments(urls.into_iter(), 0)))
            }
            Source::File { path, format } => {
                let name = path.display().to_string();
                let file = File::open(&path).with_context(|| format!("--from can't read {name}"))?;
                let reader = reader(Box::new(file), format, &name)?;
                Ok(current(name, path.parent().unwrap_or(Path::new("")).to_owned(), reader))
            }
            Source::Stdin { format, spool } => {
                let name = "standard input".to_owned();
                let input: Box<dyn Read + Send> = match spool {
                    Some(mut file) => {
                        file.rewind()?;
                        Box::new(file)
                    }
                    None => Box::new(io::stdin()),
                };
                let reader = reader(input, format, &name)?;
                Ok(current(name, PathBuf::new(), reader))
            }
        }
    }

    /// See `Rows::total`.
    fn count(&self, settings: &InputSettings) -> Option<u64> {
        const SMALL: u64 = 64 << 20;
        let rows = |url: &str| match Template::parse(url) {
            Ok(Some(template)) if settings.templates => template.total(),
            _ => 1,
        };
        let (path, format) = match self {
            Source::Arguments(urls) => return urls.iter().try_fold(0_u64, |sum, url| sum.checked_add(rows(url))),
            Source::Stdin { .. } => return None,
            Source::File { path, format } => (path, *format),
        };
        let metadata = path.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > SMALL {
            return None;
        }
        let input = BufReader::new(File::open(path).ok()?);
        let mut count = 0_u64;
        match format {
            InputFormat::Csv | InputFormat::Tsv => {
                let mut table = Table::new(input, delimiter(format)).ok()?;
                while table.read().ok()?.is_some() {
                    count += 1;
                }
                Some(count.saturating_sub(1))
            }
            _ => {
                let mut lines = Lines::new(input);
                while let Some(line) = lines.next().ok()? {
                    count = count.checked_add(match line {
                        Line::Text(text) if format == InputFormat::Jsonl || !lines::is_comment(text) => {
                            if format == InputFormat::Jsonl { 1 } else { rows(text) }
                        }
                        Line::Text(_) => 0,
                        Line::Bad(_) => 1,
                    })?;
                }
                Some(count)
            }
        }
    }
}

type Input = Box<dyn BufRead + Send>;

/// A source in its format.
enum Reader {
    Arguments(std::vec::IntoIter<String>, u64),
    Lines(Lines<Input>),
    Jsonl(Lines<Input>),
    Table { table: Box<Table<Input>>, url: usize, id: Option<usize>, method: Option<usize> },
}

impl Reader {
    /// Reads the header line of a table; fails if the column isn't there.
    fn new(input: Input, format: InputFormat, settings: &InputSettings, name: &str) -> Result<Self> {
        if !matches!(format, InputFormat::Csv | InputFormat::Tsv) {
            let lines = Lines::new(input);
            return Ok(if format == InputFormat::Jsonl { Reader::Jsonl(lines) } else { Reader::Lines(lines) });
        }
        let unreadable = || format!("can't read {name}");
        let mut table = Table::new(input, delimiter(format)).with_context(unreadable)?;
        if let Some(Err(why)) = table.read().with_context(unreadable)? {
            bail!("{}: line {}: {why}", unreadable(), table.line());
        }
        let find = |wanted: &str| {
            let exact = table.names().position(|name| name == wanted);
            exact.or_else(|| table.names().position(|name| name.eq_ignore_ascii_case(wanted)))
        };
        let wanted = settings.column.as_deref().unwrap_or("url");
        let url = match find(wanted) {
            Some(column) => column,
            // Nothing at all is a table of no rows.
            None if table.names().next().is_none() => 0,
            None => {
                let names: String = table.names().collect::<Vec<_>>().join(", ").chars().take(200).collect();
                bail!(
                    "{name} has no column {wanted:?}, but {names}: name one with --column (without a header line, it \
                     is --format lines)"
                )
            }
        };
        let (id, method) = (find("id").filter(|&id| id != url), find("method").filter(|&method| method != url));
        Ok(Reader::Table { table: Box::new(table), url, id, method })
    }

    /// Whether its URLs may stand for several. Rows with an id of their own are one each.
    fn has_templates(&self) -> bool {
        matches!(self, Reader::Arguments(..) | Reader::Lines(_))
    }

    /// The line that came last, or the number of the argument.
    fn place(&self) -> u64 {
        match self {
            Reader::Arguments(_, number) => *number,
            Reader::Lines(lines) | Reader::Jsonl(lines) => lines.line(),
            Reader::Table { table, .. } => table.line(),
        }
    }

    fn next(&mut self) -> io::Result<Option<Result<Draft, Bad>>> {
        match self {
            Reader::Arguments(urls, number) => {
                *number += 1;
                Ok(urls.next().map(|url| Ok(Draft::of(url.trim()))))
            }
            Reader::Lines(lines) => loop {
                match lines.next()? {
                    None => return Ok(None),
                    Some(Line::Bad(why)) => return Ok(Some(Err(Bad::new("", why)))),
                    Some(Line::Text(text)) if lines::is_comment(text) => {}
                    Some(Line::Text(text)) => return Ok(Some(Ok(Draft::of(text)))),
                }
            },
            Reader::Jsonl(lines) => Ok(lines.next()?.map(|line| match line {
                Line::Bad(why) => Err(Bad::new("", why)),
                Line::Text(text) => jsonl::parse(text).map_err(|why| jsonl::bad(text, why)),
            })),
            Reader::Table { table, url, id, method } => Ok(match table.read()? {
                None => None,
                Some(Err(why)) => Some(Err(Bad::new("", why))),
                Some(Ok(())) => Some(record(table, *url, *id, *method)),
            }),
        }
    }
}

/// The row of a record of a table.
fn record(table: &Table<Input>, url: usize, id: Option<usize>, method: Option<usize>) -> Result<Draft, Bad> {
    let field = |column: usize| match table.field(column) {
        None | Some(Ok("")) => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(Bad::new("", format!("column {} is not UTF-8", column + 1))),
    };
    let optional = |column: Option<usize>| column.map_or(Ok(None), field);
    let id = optional(id)?.map(Box::from);
    let bad = |url: &str, why| Bad { id: id.clone(), ..Bad::new(url, why) };
    let url = field(url)?.ok_or_else(|| bad("", format!("column {}, the URL, is empty", url + 1)))?;
    let method = optional(method)?.map(header::method).transpose().map_err(|why| bad(url, why))?;
    Ok(Draft { id, method, ..Draft::of(url) })
}

/// By the name, unless it was said.
fn format(said: InputFormat, path: &Path) -> InputFormat {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    match (said, extension.as_deref()) {
        (InputFormat::Auto, Some("csv")) => InputFormat::Csv,
        (InputFormat::Auto, Some("tsv")) => InputFormat::Tsv,
        (InputFormat::Auto, Some("jsonl" | "ndjson")) => InputFormat::Jsonl,
        (InputFormat::Auto, _) => InputFormat::Lines,
        (said, _) => said,
    }
}

fn delimiter(format: InputFormat) -> u8 {
    if format == InputFormat::Tsv { b'\t' } else { b',' }
}

/// An absolute URL of HTTP that can be fetched; with a base, paths are relative to it.
fn url(text: &str, base: Option<&Url>) -> Result<Url, String> {
    const WHOLE: &str = "write the URL in full, as in https://example.com/";
    if let Some(control) = text.chars().find(char::is_ascii_control) {
        return Err(format!("the URL has the control character {control:?}"));
    }
    let url = match base {
        Some(base) if text.starts_with('/') => base.join(text),
        _ => Url::parse(text),
    };
    let url = match url {
        Err(_) if text.is_empty() => return Err(format!("the URL is empty: {WHOLE}")),
        Err(_) if text.starts_with('{') => return Err(format!("{WHOLE}; a file of JSON lines is --format jsonl")),
        Err(_) if !text.contains("://") => return Err(WHOLE.into()),
        Err(error) => return Err(format!("{error} in the URL")),
        Ok(url) => url,
    };
    match url.scheme() {
        "http" | "https" => {}
        // `localhost:8080/x` has the scheme localhost.
        _ if !text.contains("://") => return Err(WHOLE.into()),
        scheme => return Err(format!("the scheme {scheme:.40} is not one of http and https")),
    }
    if url.port() == Some(0) {
        return Err("nobody can listen at port 0".into());
    }
    if url.as_str().len() > LONGEST_URL {
        return Err(format!("the URL is longer than {LONGEST_URL} bytes"));
    }
    Ok(url)
}

/// What was written in the place of a URL, fit to be shown: shortened, and without what may be a password. Where a
/// user's name ends can't be told in what is no URL, so all before the last `@` goes.
fn harmless(text: &str) -> String {
    const MOST: usize = 200;
    let authority = text.find("://").map_or(0, |scheme| scheme + 3);
    let mut shown: String = match text.rfind('@') {
        Some(at) if at >= authority => format!("{}{}", &text[..authority], &text[at + 1..]),
        _ => text.to_owned(),
    };
    if let Some((end, _)) = shown.char_indices().nth(MOST) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// The requests that have been there: a hash of 64 bits each, some 10 to 20 bytes with the room of the table. Two of
/// ten million share one by chance with a probability of 1 in 400,000.
#[derive(Default)]
struct Seen {
    hasher: RandomState,
    requests: HashSet<u64>,
}

impl Seen {
    fn is_new(&mut self, request: &Request) -> bool {
        self.requests.insert(identity(&self.hasher, request))
    }
}

/// Whose id is whose: a hash of each id and one of the first request that had it, twice what [`Seen`] takes.
#[derive(Default)]
struct Ids {
    hasher: RandomState,
    requests: HashMap<u64, u64>,
}

impl Ids {
    /// Whether no other request has this id.
    fn is_own(&mut self, id: &str, request: &Request) -> bool {
        let identity = identity(&self.hasher, request);
        *self.requests.entry(self.hasher.hash_one(id)).or_insert(identity) == identity
    }
}

/// A hash of all that is sent, and to whom.
fn identity(hasher: &RandomState, request: &Request) -> u64 {
    let Request { url, method, headers, body, timeout: _ } = request;
    let body = match body {
        Payload::None => (0, &[][..]),
        Payload::Bytes(bytes) => (1, &bytes[..]),
        Payload::File(path) => (2, path.as_os_str().as_encoded_bytes()),
    };
    let mut headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    // Only the order of values of the same name means something; this keeps it.
    headers.sort_by_key(|&(name, _)| name);
    // What is behind # is not sent.
    let url = url.as_str().split('#').next();
    hasher.hash_one((method.as_str(), url, headers, body))
}

/// For `--strict`: fails if any row is bad, and names the first few.
fn check_all(rows: Rows) -> Result<()> {
    const NAMED: usize = 10;
    let (mut named, mut bad) = (Vec::new(), 0_u64);
    for row in rows {
        if let Err(row) = row?.content {
            bad += 1;
            if named.len() < NAMED {
                named.push(row.message);
            }
        }
    }
    match bad - named.len() as u64 {
        _ if bad == 0 => return Ok(()),
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    bail!("--strict: {bad} bad rows, nothing was sent:\n  {}", named.join("\n  "))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use reqwest::header::HeaderMap;

    use super::*;

    fn settings(urls: &[&str], files: &[&Path]) -> InputSettings {
        InputSettings {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            files: files.iter().map(|file| file.to_path_buf()).collect(),
            templates: true,
            ..fuzzing::settings(InputFormat::Auto)
        }
    }

    fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        File::create(&path).unwrap().write_all(content.as_ref()).unwrap();
        (directory, path)
    }

    fn rows(settings: &InputSettings) -> Vec<Row> {
        let rows: Vec<Row> = Rows::open(settings).unwrap().map(Result::unwrap).collect();
        assert!(rows.iter().zip(1..).all(|(row, number)| row.number == number), "{rows:?}");
        rows
    }

    #[track_caller]
    fn request(row: &Row) -> &Request {
        row.content.as_ref().unwrap()
    }

    #[track_caller]
    fn bad(row: &Row) -> &BadRow {
        row.content.as_ref().unwrap_err()
    }

    /// The only row of a file of JSON lines.
    #[track_caller]
    fn json(line: &str) -> (tempfile::TempDir, Row) {
        let (directory, path) = file("in.jsonl", line);
        let mut rows = rows(&settings(&[], &[&path]));
        assert_eq!(rows.len(), 1);
        (directory, rows.remove(0))
    }

    #[test]
    fn arguments_come_first_then_files_and_numbers_go_on() {
        let (_directory, path) = file("urls.txt", "# a list\nhttp://c/\r\n\nhttp://d/{1..2}\nno url\n");
        let settings = settings(&["http://a/", "http://b/{x,y}"], &[&path, &path]);
        let rows = rows(&settings);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| match &row.content {
                Ok(request) => request.url.to_string(),
                Err(bad) => bad.message.replace(&*path.to_string_lossy(), "FILE"),
            })
            .collect();
        let in_file = ["http://c/", "http://d/1", "http://d/2"];
        assert_eq!(shown[..6], [&["http://a/", "http://b/x", "http://b/y"], &in_file[..]].concat());
        assert_eq!(shown[7..10], in_file);
        assert_eq!(shown[6], "FILE:5: write the URL in full, as in https://example.com/");
        assert_eq!(Rows::total(&settings), Some(11));
    }

    #[test]
    fn a_url_that_can_not_be_fetched_is_a_bad_row_that_says_why() {
        for (url, why) in [
            ("", "empty"),
            ("example.com", "in full"),
            ("localhost:8080/x", "in full"),
            ("/status/200", "in full"),
            ("ftp://example.com/", "scheme ftp"),
            ("http://", "empty host"),
            ("http://a:65536/", "port"),
            ("http://a:0/", "port 0"),
            ("http://a/\u{7}b", "control character"),
            ("http://a/\tb", "control character"),
            ("http://[::1/", "IPv6"),
            ("http://a b/", "domain"),
            ("http://1.2.3.4.5/", "IPv4"),
            ("{\"url\": \"http://a/\"}", "--format jsonl"),
            ("http://a/{1..18446744073709551616}", "2^64"),
            (&format!("http://a/{}", "x".repeat(LONGEST_URL)), "longer than"),
        ] {
            let rows = rows(&settings(&["http://good/", url], &[]));
            let bad = bad(&rows[1]);
            assert!(bad.message.starts_with("argument 2: ") && bad.message.contains(why), "{url:.80}: {}", bad.message);
            assert!(bad.url.chars().count() <= 201, "{}", bad.url);
        }
    }

    #[test]
    fn passwords_are_sent_but_not_shown() {
        let rows = rows(&settings(
            &[
                "http://user:secret@a/",
                "http://user:secret@a:99999/",
                "ftp://user:sec/ret@a/",
                "user:secret@a/x@y",
                "http:/user:se#cret@[",
            ],
            &[],
        ));
        assert_eq!(request(&rows[0]).url.password(), Some("secret"));
        assert_eq!(bad(&rows[1]).url, "http://a:99999/");
        for row in &rows[1..] {
            assert!(!format!("{row:?}").contains("ret"), "{row:?}");
        }
    }

    #[test]
    fn a_path_is_relative_to_the_base_if_there_is_one() {
        let mut settings = settings(&["/status/404?a#b", "http://other/"], &[]);
        settings.base = Some(Url::parse("http://127.0.0.1:9/").unwrap());
        let rows = rows(&settings);
        assert_eq!(request(&rows[0]).url.as_str(), "http://127.0.0.1:9/status/404?a#b");
        assert_eq!(request(&rows[1]).url.as_str(), "http://other/");
    }

    #[test]
    fn tables_have_a_column_of_urls_and_may_have_ids_and_methods() {
        let content = "\u{feff}ID,Link,method\r\n7,\"http://a/{1..2}\",post\r\n,http://b/\r\nx,,\r\n8,http://c/,G T\r\n\
                       9,\"http://d/\n\",\r\n";
        let (_directory, path) = file("in.CSV", content);
        let mut settings = settings(&[], &[&path]);
        settings.column = Some("link".into());
        let rows = rows(&settings);
        assert_eq!((rows[0].id.as_deref(), &request(&rows[0]).method), (Some("7"), &Method::POST));
        // What has an id stands for itself.
        assert_eq!(request(&rows[0]).url.as_str(), "http://a/%7B1..2%7D");
        assert_eq!((rows[1].id.as_deref(), &request(&rows[1]).method), (None, &Method::GET));
        assert!(bad(&rows[2]).message.ends_with("in.CSV:4: column 2, the URL, is empty"), "{rows:?}");
        assert!(bad(&rows[3]).message.contains(":5: \"G T\" is no method"), "{rows:?}");
        assert_eq!(bad(&rows[3]).url, "http://c/");
        assert_eq!((rows[2].id.as_deref(), rows[3].id.as_deref()), (Some("x"), Some("8")));
        assert_eq!((rows.len(), request(&rows[4]).url.as_str()), (5, "http://d/"));
        assert_eq!(Rows::total(&settings), Some(5));
    }

    #[test]
    fn a_table_without_the_column_is_refused_with_those_it_has() {
        let (_directory, path) = file("in.tsv", "name\thref\nx\thttp://a/\n");
        let error = format!("{:#}", Rows::open(&settings(&[], &[&path])).unwrap_err());
        for word in ["in.tsv", "\"url\"", "name, href", "--column"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        let (_directory, path) = file("empty.csv", "");
        assert_eq!(rows(&settings(&[], &[&path])).len(), 0);
    }

    #[test]
    fn a_json_line_may_say_everything() {
        let (_directory, row) = json(
            r#"{"url": "http://a/", "method": "put", "headers": {"X-A": ["1", "2"], "x-b": "ü"}, "body": {"base64":
                "AP8="}, "timeout": "1.5s", "id": 7}"#
                .replace('\n', "")
                .as_str(),
        );
        let request = request(&row);
        assert_eq!((row.id.as_deref(), &request.method), (Some("7"), &Method::PUT));
        assert_eq!(request.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(request.headers["x-b"].as_bytes(), "ü".as_bytes());
        assert_eq!(request.body, Payload::Bytes(vec![0, 255].into()));
        assert_eq!(request.timeout, Some(Duration::from_millis(1_500)));
        for (line, method) in [
            (r#"{"url": "http://a/", "body": "x", "timeout": 2, "id": "n"}"#, Method::POST),
            (r#"{"url": "http://a/", "method": "GET", "body": {"text": "x"}}"#, Method::GET),
            (r#"{"url": "http://a/", "method": null, "headers": null, "body": null}"#, Method::GET),
        ] {
            let (_directory, row) = json(line);
            assert_eq!(super::tests::request(&row).method, method, "{line}");
        }
    }

    #[test]
    fn a_bad_json_line_names_its_place_and_what_is_known() {
        for (line, words) in [
            (r#"{"url": "http://a/", "metod": "GET"}"#, &["`metod`", "`method`", "`timeout`", "in.jsonl:1: "][..]),
            (r#"{"url": "http://a/""#, &["column 19"]),
            (r#"{"method": "GET"}"#, &["`url`"]),
            (r#"{"url": "http://a/", "url": "http://b/"}"#, &["duplicate"]),
            (r#"{"url": "http://a/", "headers": {"a\r\nb": "c"}}"#, &["no name of a header"]),
            (r#"{"url": "http://a/", "headers": {"a": "b\r\nc: d"}}"#, &["header a", "control character"]),
            (r#"{"url": "http://a/", "headers": {"Content-Length": "3"}}"#, &["content-length", "itself"]),
            (r#"{"url": "http://a/", "headers": {"a": 1}}"#, &["string or a list"]),
            (r#"{"url": "http://a/", "body": {"base64": "%"}}"#, &["base64"]),
            (r#"{"url": "http://a/", "body": {"fiel": "x"}}"#, &["file"]),
            (r#"{"url": "http://a/", "body": {"file": "no/such"}}"#, &["no/such", "can't be read"]),
            (r#"{"url": "http://a/", "timeout": -1}"#, &["timeout"]),
            (r#"{"url": "http://a/", "timeout": 0}"#, &["timeout", "above 0"]),
            (r#"{"url": "http://a/", "id": true}"#, &["id is a string or a number"]),
            (r#""http://a/""#, &["no JSON object"]),
            (r#"["http://a/"]"#, &["no JSON object"]),
            ("http://a/", &["no JSON object"]),
            (&format!("{{\"id\": {}", "[".repeat(100_000)), &["EOF"]),
            (&format!("{{\"body\": {}", "[".repeat(100_000)), &["recursion"]),
        ] {
            let (_directory, row) = json(line);
            let bad = bad(&row);
            assert!(words.iter().all(|word| bad.message.contains(word)), "{line:.80}: {}", bad.message);
        }
        let (_directory, row) = json(r#"{"url": "http://u:p@a/", "x": 1}"#);
        assert_eq!((bad(&row).url.as_str(), row.id.as_deref()), ("http://a/", None));
    }

    #[test]
    fn a_number_as_an_id_is_taken_as_it_is_written() {
        for (written, id) in [
            ("7", Some("7")),
            ("-1.50", Some("-1.50")),
            ("12345678901234567890123", Some("12345678901234567890123")),
            ("1e400", Some("1e400")),
            (r#""\u0061\n""#, Some("a\n")),
            ("null", None),
        ] {
            let (_directory, row) = json(&format!(r#"{{"url": "http://a/", "id": {written}}}"#));
            assert_eq!(row.id.as_deref(), id, "{written}");
        }
    }

    #[test]
    fn a_bad_json_line_keeps_the_id_that_can_be_read() {
        for (line, url, id) in [
            (r#"{"id": "a", "url": "http://a/", "x": 1}"#, "http://a/", Some("a")),
            (r#"{"id": 7, "url": 1}"#, "", Some("7")),
            (r#"{"id": "a"}"#, "", Some("a")),
            (r#"{"id": "a", "url": "no url"}"#, "no url", Some("a")),
            (r#"{"id": "a", "url": "http://a/", "body": {"file": "no/such"}}"#, "http://a/", Some("a")),
            (r#"{"id": true, "url": "http://a/"}"#, "http://a/", None),
            (r#"{"id": "a", "url": "http://a/""#, "", None),
            (r#"["http://a/"]"#, "", None),
        ] {
            let (_directory, row) = json(line);
            assert_eq!((bad(&row).url.as_str(), row.id.as_deref()), (url, id), "{line}");
        }
    }

    #[test]
    fn the_body_of_a_row_may_be_a_file_beside_the_input() {
        let (directory, path) = file("in.jsonl", r#"{"url": "http://a/", "body": {"file": "a.bin"}}"#);
        std::fs::write(directory.path().join("a.bin"), b"x").unwrap();
        let mut settings = settings(&[], &[&path]);
        assert_eq!(request(&rows(&settings)[0]).body, Payload::File(directory.path().join("a.bin")));
        settings.file_bodies = false;
        assert!(bad(&rows(&settings)[0]).message.contains("--deny-private"));
    }

    #[test]
    fn a_row_goes_before_the_command_line() {
        let (_directory, path) = file(
            "in.jsonl",
            r#"{"url": "http://a/?x=1"}
               {"url": "http://a/", "headers": {"X-A": "row", "x-b": []}, "body": "own", "method": "PUT"}
               {"url": "http://a/", "method": "GET"}"#,
        );
        let mut settings = settings(&[], &[&path]);
        let defaults = &mut settings.defaults;
        (defaults.method, defaults.query) = (Method::POST, Some("q=2".into()));
        defaults.body = Payload::Bytes("common".into());
        defaults.headers = HeaderMap::from_iter(
            ["x-a", "x-b"].map(|name| (HeaderName::from_static(name), HeaderValue::from_static("all"))),
        );
        let rows = rows(&settings);
        let [first, second, third] = [0, 1, 2].map(|index| request(&rows[index]));
        assert_eq!((&first.method, &first.body), (&Method::POST, &Payload::Bytes("common".into())));
        assert_eq!((first.url.as_str(), second.url.as_str()), ("http://a/?x=1&q=2", "http://a/?q=2"));
        assert_eq!((&second.method, &second.body), (&Method::PUT, &Payload::Bytes("own".into())));
        assert_eq!((second.headers.len(), &second.headers["x-a"]), (1, &HeaderValue::from_static("row")));
        assert_eq!((&third.method, &third.body), (&Method::GET, &Payload::None));
    }

    #[test]
    fn duplicates_are_left_out_before_they_are_numbered() {
        let (_directory, path) = file(
            "in.jsonl",
            r#"{"url": "http://a/{1..2}", "id": 1}
               {"url": "http://a/", "method": "PUT"}
               {"url": "http://a/", "body": "x", "method": "PUT"}
               {"url": "http://a/", "headers": {"x-a": "1", "x-b": "2"}}
               {"url": "http://a/", "headers": {"X-B": "2", "X-A": "1"}}
               {"url": "http://A:80/#part", "id": 2}
               {"url": ""}
               {"url": ""}"#,
        );
        let mut settings = settings(&["http://a/", "http://a", "http://b/{1..2}{x,x}"], &[&path]);
        settings.dedupe = true;
        let mut all = Rows::open(&settings).unwrap();
        let numbers: Vec<u64> = all.by_ref().map(|row| row.unwrap().number).collect();
        assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
        assert_eq!(all.duplicates().load(Ordering::Relaxed), 5);
        settings.dedupe = false;
        assert_eq!(rows(&settings).len(), 14);
    }

    #[test]
    fn an_id_that_names_a_file_is_that_of_one_request() {
        let (_directory, path) = file(
            "in.jsonl",
            r#"{"url": "http://a/1", "id": "a"}
               {"url": "http://user:secret@a/2", "id": "a"}
               {"url": "http://a/1", "id": "a"}
               {"url": "http://a/2", "id": "b"}
               {"url": "http://a/3"}
               {"url": "http://a/4"}"#,
        );
        let mut settings = settings(&[], &[&path]);
        settings.own_ids = true;
        let rows = rows(&settings);
        let bad: Vec<_> = rows.iter().filter_map(|row| row.content.as_ref().err()).collect();
        assert_eq!((rows.len(), bad.len()), (6, 1), "{bad:?}");
        assert_eq!((rows[1].number, rows[1].id.as_deref()), (2, Some("a")));
        assert_eq!(bad[0].url, "http://a/2");
        assert!(bad[0].message.contains("in.jsonl:2") && bad[0].message.contains("--names id"), "{}", bad[0].message);
        settings.strict = true;
        assert!(Rows::open(&settings).unwrap_err().to_string().contains("--names id"));
        (settings.strict, settings.own_ids) = (false, false);
        assert!(super::tests::rows(&settings).iter().all(|row| row.content.is_ok()));
    }

    #[test]
    fn strict_names_the_bad_rows_and_otherwise_gives_all_of_them() {
        let (_directory, path) = file("in.txt", "http://a/\nhttp://b/\n");
        let mut settings = settings(&["http://c/"], &[&path]);
        settings.strict = true;
        assert_eq!(rows(&settings).len(), 3);
        settings.urls.extend((0..20).map(|number| format!("bad-{number}")));
        let error = Rows::open(&settings).unwrap_err().to_string();
        for words in ["--strict: 20 bad rows", "argument 2: ", "argument 11: ", "and 10 more"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!error.contains("argument 12: "), "{error}");
    }

    #[test]
    fn what_can_not_be_read_is_known_before_anything_is_sent() {
        let (directory, path) = file("in.txt", "http://a/");
        for (files, words) in [
            (&[Path::new("no/such")][..], &["--from", "no/such"][..]),
            (&[&path, directory.path()], &["--from", "directory"]),
            (&[Path::new("-"), Path::new("-")], &["only once"]),
        ] {
            let error = format!("{:#}", Rows::open(&settings(&[], files)).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        // Gone in between: what was read so far stands, then comes the error, then nothing.
        let mut rows = Rows::open(&settings(&["http://b/"], &[&path, &path])).unwrap();
        drop(directory);
        assert!(rows.next().unwrap().is_ok());
        assert!(format!("{:#}", rows.next().unwrap().unwrap_err()).contains("in.txt"));
        assert!(rows.next().is_none());
    }

    #[test]
    fn the_total_is_unknown_where_counting_would_take_something_away() {
        assert_eq!(Rows::total(&settings(&["http://a/{1..1000000000000}"], &[])), Some(1_000_000_000_000));
        assert_eq!(Rows::total(&settings(&["http://a/"], &[Path::new("-")])), None);
        let twice = ["http://a/[0-9999999999]{0..999999999}"; 2];
        assert_eq!(Rows::total(&settings(&twice, &[])), None);
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(65 << 20).unwrap();
        assert_eq!(Rows::total(&settings(&[], &[large.path()])), None);
    }
}
