//! The body of a response on its way: counted, hashed, and put where it is wanted.
//!
//! A small one is collected in memory and put into its file at once: open, write, close and rename are all the system
//! calls there are. What is larger goes through a file without a name yet, as it comes: a hop to another thread would
//! take longer. A file gets its name when it is whole, and never before.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, LAST_MODIFIED};
use reqwest::{Method, Url, Version};
use tempfile::{NamedTempFile, TempPath};

use super::hash::Sha256;
use super::partial::{Held, Scratch};
use super::warc::{Draft, Payloads};
use super::{Page, Partial, Place, names};
use crate::extract::charset;
use crate::request::Request;
use crate::settings::{Inline, Names, OutputSettings};

/// More than this of a body is not collected in memory if there is a file for it.
const SMALL: usize = 32 * 1024;

/// So many pieces of memory are kept for bodies to come, each of at most this size.
const SPARES: usize = 64;
const SPARE_SIZE: usize = 4 * 1024;

/// The longest body that is put into a record or extracted from, which takes memory.
pub(crate) const LONGEST_IN_MEMORY: u64 = 16 * 1024 * 1024;

/// The shortest part of a body that is worth a second request.
const WORTH_RESUMING: u64 = 1024 * 1024;

/// Where bodies are kept.
#[derive(Clone, Debug)]
pub(crate) struct Bodies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Option<Directory>,
    names: Names,
    /// Headers that make no difference between requests.
    usual: HeaderMap,
    inline: Option<Inline>,
    /// The directory of the archive: there is room for bodies.
    archive: Option<PathBuf>,
    page: bool,
    keep_errors: bool,
    spare: Spare,
}

/// Memory of small bodies, for the next ones. They come on one thread and are kept by others, and memory that is given
/// up on another thread than it was taken on is what allocators are slowest at.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

#[derive(Debug)]
struct Directory {
    /// Absolute.
    path: PathBuf,
    scratch: Arc<Scratch>,
}

/// Whose body it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket<'a> {
    /// The number of the row.
    pub(crate) row: u64,
    /// What the row calls itself, if it does.
    pub(crate) id: Option<&'a str>,
    pub(crate) request: &'a Request,
}

/// The response that a body belongs to.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) status: u16,
    pub(crate) version: Version,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) final_url: &'a Url,
    /// The response is the rest of this one (206 to its range).
    pub(crate) resumed: Option<Box<Partial>>,
}

/// A body on its way. Dropped before it is whole, nothing of it is left, or a [`Partial`].
#[derive(Debug)]
pub(crate) struct Body {
    shared: Arc<Shared>,
    bytes: u64,
    /// Of all that has come, or of nothing yet: a small body in memory is hashed when it is whole or grows too long.
    hash: Sha256,
    store: Store,
    /// Whether it gets a file of its own.
    filed: bool,
    draft: Option<Box<Draft>>,
    page: Option<Page>,
    inline: Option<Inline>,
    rest: Option<Box<Rest>>,
}

/// What makes a cut body fit to be gone on with.
#[derive(Debug)]
struct Rest {
    key: String,
    validator: String,
}

/// What there is of a body.
#[derive(Debug)]
enum Store {
    /// Nobody wants it.
    Nothing,
    Memory(Vec<u8>),
    /// To be renamed.
    Named(NamedTempFile),
    /// For the archive.
    Unnamed(File),
}

/// A whole body, and where it is.
#[derive(Debug)]
pub(crate) struct Kept {
    /// All of it, with what was there before a resumed one.
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// Relative to the directory of bodies.
    pub(crate) file: Option<String>,
    pub(crate) inline: Option<String>,
    pub(crate) warc: Option<Place>,
    pub(crate) page: Option<Page>,
}

impl Bodies {
    /// With `keep_page`, bodies come back to be extracted from.
    pub(crate) fn new(settings: &OutputSettings, keep_page: bool) -> anyhow::Result<Self> {
        let directory = settings.directory.as_deref().map(|path| {
            Directory::open(path).with_context(|| format!("{} can't hold the bodies (--output-dir)", path.display()))
        });
        let archive = settings.warc.as_deref().map(|path| match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        });
        Ok(Bodies(Arc::new(Shared {
            directory: directory.transpose()?,
            names: settings.names,
            usual: HeaderMap::new(),
            inline: settings.inline,
            archive,
            page: keep_page,
            keep_errors: settings.keep_errors,
            spare: Spare::default(),
        })))
    }

    /// Headers that all requests have, and that therefore need not be in the names of files. Before any clone.
    pub(crate) fn with_usual_headers(mut self, headers: &HeaderMap) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            shared.usual = headers.clone();
        }
        self
    }

    /// Whether the body of a response with this status is kept. (Those that aren't are counted and hashed all the
    /// same.)
    pub(crate) fn wants(&self, status: u16) -> bool {
        // "Not modified" says that what was kept earlier is right.
        status != 304 && (status < 400 || self.0.keep_errors)
    }

    /// What an earlier attempt or run left of this body. Taken from its place until it is dropped.
    pub(crate) fn partial(&self, request: &Request) -> Option<Box<Partial>> {
        let directory = self.0.directory.as_ref()?;
        directory.scratch.take(|| names::key(request, &self.0.usual)).map(Box::new)
    }

    /// For the body of a response that has just begun.
    pub(crate) fn open(&self, request: &Request, head: Head<'_>) -> io::Result<Body> {
        let shared = &self.0;
        let mut body = Body {
            shared: Arc::clone(shared),
            bytes: 0,
            hash: Sha256::new(),
            store: Store::Nothing,
            filed: false,
            draft: None,
            page: None,
            inline: None,
            rest: None,
        };
        if !self.wants(head.status) {
            return Ok(body);
        }
        body.inline = shared.inline;
        body.draft = shared.archive.is_some().then(|| Box::new(Draft::new(request, &head)));
        body.page = shared.page.then(|| {
            let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let charset = content_type.and_then(charset).map(str::to_owned);
            Page { bytes: Bytes::new(), charset, is_cut: false }
        });
        body.filed = shared.directory.is_some();
        if body.filed {
            let validator = match &head.resumed {
                Some(partial) => Some(partial.validator.clone()),
                None if request.method == Method::GET && head.status == 200 => validator(head.headers),
                None => None,
            };
            let rest = |validator| Box::new(Rest { key: names::key(request, &shared.usual), validator });
            body.rest = validator.map(rest);
        }
        if body.filed || body.draft.is_some() || body.page.is_some() || body.inline.is_some() {
            body.store = Store::Memory(if head.resumed.is_none() { shared.spare.take() } else { Vec::new() });
        }
        if let Some(partial) = head.resumed {
            body.bytes = partial.len;
            let held = partial.into_held().ok_or_else(|| io::Error::other("the first part of the body is gone"))?;
            body.hash = held.hash;
            body.store = Store::Named(held.file);
        }
        Ok(body)
    }
}

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut spare = self.0.lock();
        if (1..=SPARE_SIZE).contains(&bytes.capacity()) && spare.len() < SPARES {
            spare.push(bytes);
        }
    }
}

impl Directory {
    fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        let scratch = Arc::new(Scratch::open(&path)?);
        Ok(Directory { path, scratch })
    }

    /// Gives a file its name, and makes the directories for it if there are none yet.
    fn put(&self, file: TempPath, name: &str) -> io::Result<()> {
        let target = self.path.join(name);
        let error = match file.persist(&target) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match target.parent() {
            Some(parent) if error.error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(parent)?;
                error.path.persist(&target).map_err(|error| error.error)
            }
            _ => Err(error.error),
        }
    }

    fn failed(&self, name: Option<&str>, error: &io::Error) -> io::Error {
        let what = match name {
            Some(name) => format!("{} can't be written", self.path.join(name).display()),
            None => format!("a body can't be written in {}", self.path.display()),
        };
        io::Error::new(error.kind(), format!("{what} (--output-dir): {error}"))
    }
}

impl Body {
    /// How many have come.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of them are in memory, and not in a file.
    pub(crate) fn in_memory(&self) -> u64 {
        if let Store::Memory(bytes) = &self.store { bytes.len() as u64 } else { 0 }
    }

    /// Takes the next piece.
    pub(crate) fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.bytes += chunk.len() as u64;
        if let Store::Memory(bytes) = &mut self.store
            && bytes.len() + chunk.len() <= SMALL
        {
            bytes.extend_from_slice(chunk);
            return Ok(());
        }
        self.hash_small();
        self.hash.update(chunk);
        if self.inline.is_some() && self.bytes > LONGEST_IN_MEMORY {
            let message = format!("the body is longer than {LONGEST_IN_MEMORY} bytes, which is too much for a record");
            return Err(io::Error::other(format!("{message}: --output-dir instead of --body keeps it")));
        }
        let written = match &mut self.store {
            Store::Nothing => Ok(()),
            Store::Memory(_) => self.write_much(chunk),
            Store::Named(file) => file.write_all(chunk),
            Store::Unnamed(file) => file.write_all(chunk),
        };
        written.map_err(|error| self.failed(None, &error))
    }

    /// Hashes a small body in memory; whatever is longer, or elsewhere, has been hashed as it came.
    fn hash_small(&mut self) {
        if let Store::Memory(bytes) = &self.store
            && bytes.len() <= SMALL
        {
            self.hash.update(bytes);
        }
    }

    /// To a file from now on, if it may have one.
    fn write_much(&mut self, chunk: &[u8]) -> io::Result<()> {
        let Store::Memory(bytes) = &mut self.store else { return Ok(()) };
        if let Some(directory) = &self.shared.directory {
            let mut file = directory.scratch.file()?;
            file.write_all(bytes)?;
            file.write_all(chunk)?;
            self.store = Store::Named(file);
        } else if let Some(directory) = &self.shared.archive {
            let mut file = tempfile::tempfile_in(directory)?;
            file.write_all(bytes)?;
            file.write_all(chunk)?;
            self.store = Store::Unnamed(file);
        } else if self.bytes <= LONGEST_IN_MEMORY {
            bytes.extend_from_slice(chunk);
        } else {
            self.store = Store::Nothing; // too long a page
        }
        Ok(())
    }

    /// The body is whole: puts it where it is wanted.
    pub(crate) fn keep(mut self, whose: Ticket<'_>) -> io::Result<Kept> {
        // Whatever happens now, it is not for want of the rest.
        let rest = self.rest.take();
        // Only now: whoever has the thread of the requests has no time for it.
        let name = self.filed.then(|| names::name(self.shared.names, whose, &self.shared.usual));
        let mut kept = self.put(name.as_deref()).map_err(|error| self.failed(name.as_deref(), &error))?;
        kept.file = name;
        if let (Some(rest), Some(directory)) = (rest, &self.shared.directory) {
            directory.scratch.forget(|| rest.key);
        }
        Ok(kept)
    }

    /// The body is of no use, nor is a part of it.
    pub(crate) fn discard(&mut self) {
        self.rest = None;
    }

    fn put(&mut self, name: Option<&str>) -> io::Result<Kept> {
        self.hash_small();
        let sha256 = std::mem::replace(&mut self.hash, Sha256::new()).finish();
        let mut kept = Kept { bytes: self.bytes, sha256, file: None, inline: None, warc: None, page: None };
        if let Some(how) = self.inline {
            let bytes = self.read()?;
            kept.inline = Some(match how {
                Inline::Base64 => BASE64_STANDARD.encode(bytes),
                Inline::Text => match String::from_utf8(bytes) {
                    Ok(text) => text,
                    Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
                },
            });
        }
        if let Some(mut page) = self.page.take() {
            page.is_cut = self.bytes > LONGEST_IN_MEMORY;
            if !page.is_cut {
                page.bytes = self.read()?.into();
            }
            kept.page = Some(page);
        }
        if let (Some(draft), Some(directory)) = (self.draft.take(), &self.shared.archive) {
            let payload = match &self.store {
                Store::Nothing => Payloads::Memory(b""),
                Store::Memory(bytes) => Payloads::Memory(bytes),
                Store::Named(file) => Payloads::File(file.as_file(), self.bytes),
                Store::Unnamed(file) => Payloads::File(file, self.bytes),
            };
            kept.warc = Some(draft.finish(&payload, &kept.sha256, || tempfile::tempfile_in(directory))?);
        }
        if let (Some(name), Some(directory)) = (name, &self.shared.directory) {
            let file = match &mut self.store {
                Store::Memory(bytes) => {
                    let mut file = directory.scratch.file()?;
                    file.write_all(bytes)?;
                    file
                }
                store => match std::mem::replace(store, Store::Nothing) {
                    Store::Named(file) => file,
                    _ => directory.scratch.file()?,
                },
            };
            // Closed first: some systems don't rename what is open.
            directory.put(file.into_temp_path(), name)?;
        }
        Ok(kept)
    }

    /// All of it, which is not too long.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = match &mut self.store {
            Store::Nothing => return Ok(bytes),
            Store::Memory(bytes) => return Ok(bytes.clone()),
            Store::Named(file) => file.as_file_mut(),
            Store::Unnamed(file) => file,
        };
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// `name` is that of its file, `None` while the body is still coming.
    fn failed(&self, name: Option<&str>, error: &io::Error) -> io::Error {
        match (&self.shared.directory, &self.shared.archive) {
            (Some(directory), _) if self.filed => directory.failed(name, error),
            (_, Some(archive)) => {
                let message = format!("a body for --warc can't be written in {}: {error}", archive.display());
                io::Error::new(error.kind(), message)
            }
            _ => io::Error::new(error.kind(), error.to_string()),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Store::Memory(bytes) = &mut self.store {
            self.shared.spare.give_back(std::mem::take(bytes));
        }
        let Some(rest) = self.rest.take() else { return };
        let (Some(directory), Store::Named(file)) =
            (&self.shared.directory, std::mem::replace(&mut self.store, Store::Nothing))
        else {
            return;
        };
        // What is in the file, which may be less than what came if the disk is full, must be what the hash is of.
        let is_all = file.as_file().metadata().is_ok_and(|metadata| metadata.len() == self.bytes);
        if is_all && self.bytes >= WORTH_RESUMING {
            let held = Held { file, hash: std::mem::replace(&mut self.hash, Sha256::new()) };
            // If it fails, the whole body will be fetched.
            let _ = directory.scratch.leave(&rest.key, &rest.validator, self.bytes, held);
        }
    }
}

/// What tells whether a body is still the same, byte by byte, if a part of it can be asked for.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // One that was decoded has no length any more.
    let length: u64 = text(CONTENT_LENGTH)?.trim().parse().ok()?;
    if length <= WORTH_RESUMING || headers.contains_key(CONTENT_ENCODING) || text(ACCEPT_RANGES) == Some("none") {
        return None;
    }
    match text(ETAG) {
        Some(tag) if tag.starts_with('"') => Some(tag.to_owned()),
        // A weak tag means that the same tag can stand for other bytes, and so for the date.
        Some(_) => None,
        None => text(LAST_MODIFIED).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::settings;
    use crate::request::Payload;

    fn get(url: &str) -> Request {
        let (headers, body) = (HeaderMap::new(), Payload::None);
        Request { url: url.parse().unwrap(), method: Method::GET, headers, body, timeout: None }
    }

    fn open(bodies: &Bodies, url: &str, status: u16, headers: &[(&'static str, &str)], rest: bool) -> Body {
        let request = get(url);
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let resumed = rest.then(|| bodies.partial(&request).unwrap());
        let head = Head { status, version: Version::HTTP_11, headers: &headers, final_url: &request.url, resumed };
        bodies.open(&request, head).unwrap()
    }

    /// Keeps the body of a response to this URL.
    fn keep(body: Body, url: &str) -> io::Result<Kept> {
        body.keep(Ticket { row: 1, id: None, request: &get(url) })
    }

    fn files(directory: &Path) -> Vec<String> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path.display().to_string()) }
        }
        files
    }

    #[test]
    fn a_body_is_where_it_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let large = "0123456789".repeat(10_000);
        for (status, text, keep_errors) in
            [(200, "", false), (200, "hello", false), (200, &*large, false), (404, "gone", true), (404, "gone", false)]
        {
            let mut settings = settings(directory.path());
            settings.directory = Some(directory.path().join("bodies"));
            settings.warc = Some(directory.path().join("a.warc.gz"));
            settings.inline = Some(Inline::Base64);
            settings.keep_errors = keep_errors;
            let bodies = Bodies::new(&settings, true).unwrap();
            let mut body = open(&bodies, "https://h.org/a/b", status, &[], false);
            text.as_bytes().chunks(777).for_each(|chunk| body.write(chunk).unwrap());
            let is_small = bodies.wants(status) && text.len() <= SMALL;
            assert_eq!(body.in_memory(), if is_small { text.len() as u64 } else { 0 });
            let kept = keep(body, "https://h.org/a/b").unwrap();
            assert_eq!((kept.bytes, &*kept.sha256), (text.len() as u64, &*Sha256::of(text)));
            if !bodies.wants(status) {
                assert!(kept.file.is_none() && kept.inline.is_none() && kept.warc.is_none() && kept.page.is_none());
                continue;
            }
            assert_eq!(kept.file.as_deref(), Some("h.org/a/b.body"));
            assert_eq!(fs::read_to_string(directory.path().join("bodies/h.org/a/b.body")).unwrap(), text);
            assert_eq!(kept.inline.unwrap(), BASE64_STANDARD.encode(text));
            assert_eq!(kept.page.unwrap().bytes, text.as_bytes());
            assert!(kept.warc.is_some());
            drop(bodies);
            assert_eq!(files(&directory.path().join("bodies")).len(), 1);
        }
    }

    #[test]
    fn memory_of_small_bodies_is_used_again_and_there_is_not_much_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.directory = Some(directory.path().join("bodies"));
        let bodies = Bodies::new(&settings, false).unwrap();
        let url = "https://h.org/a.b";
        let write = |text: &[u8]| {
            let mut body = open(&bodies, url, 200, &[], false);
            body.write(text).unwrap();
            body
        };
        let spare = || bodies.0.spare.0.lock().iter().map(Vec::capacity).collect::<Vec<_>>();
        keep(write(&[b'x'; 1000]), url).unwrap();
        assert_eq!(spare().len(), 1);
        let next = write(b"another");
        assert_eq!(spare(), [0; 0], "it is in use");
        assert_eq!(keep(next, url).unwrap().sha256, Sha256::of("another"));
        assert_eq!(fs::read(directory.path().join("bodies/h.org/a.b")).unwrap(), b"another");
        // Given up without having been kept, too long, too many.
        let many: Vec<_> = (0..2 * SPARES).map(|_| write(b"x")).collect();
        drop(write(&[b'x'; SPARE_SIZE + 1]));
        assert_eq!(spare(), [0; 0], "too much for one");
        drop(many);
        drop(write(&[b'x'; SPARE_SIZE + 1]));
        assert_eq!(spare().len(), SPARES - 1, "one has grown");
        drop(write(b"x"));
        let spare = spare();
        assert!(spare.len() == SPARES - 1 && spare.iter().all(|size| (1..=SPARE_SIZE).contains(size)), "{spare:?}");
    }

    #[test]
    fn what_is_dropped_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.directory = Some(directory.path().join("bodies"));
        let bodies = Bodies::new(&settings, false).unwrap();
        for (length, headers) in [
            (10, [("etag", "\"1\""), ("content-length", "5000000")]), // too little
            (WORTH_RESUMING, [("etag", "W/\"1\""), ("content-length", "5000000")]), // perhaps another
            (WORTH_RESUMING, [("etag", "\"1\""), ("x-length", "5000000")]), // decoded
        ] {
            let mut body = open(&bodies, "https://h.org/a", 200, &headers, false);
            body.write(&vec![7; usize::try_from(length).unwrap()]).unwrap();
            drop(body);
            assert_eq!(files(directory.path()), [""; 0], "{headers:?}");
        }
    }

    #[test]
    fn a_large_body_that_was_cut_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.directory = Some(directory.path().join("bodies"));
        let bodies = Bodies::new(&settings, false).unwrap();
        let url = "https://h.org/large";
        let headers = [("last-modified", "Mon, 05 Feb 2001 04:05:06 GMT"), ("content-length", "3000000")];
        let content: Vec<u8> = (0..3_000_000_u32).map(|index| index.to_le_bytes()[1]).collect();
        let mut body = open(&bodies, url, 200, &headers, false);
        body.write(&content[..1_500_000]).unwrap();
        drop(body);
        // Cut once more.
        let mut body = open(&bodies, url, 206, &[("content-length", "1500000")], true);
        body.write(&content[1_500_000..2_000_000]).unwrap();
        assert!(bodies.partial(&get(url)).is_none(), "it is in use");
        drop(body);
        drop(bodies);

        let bodies = Bodies::new(&settings, false).unwrap();
        let partial = bodies.partial(&get(url)).unwrap();
        assert_eq!((partial.len, &*partial.validator), (2_000_000, headers[0].1));
        drop(partial);
        assert!(bodies.partial(&get("https://h.org/another")).is_none());
        let mut body = open(&bodies, url, 206, &[("content-length", "1000000")], true);
        body.write(&content[2_000_000..]).unwrap();
        let kept = keep(body, url).unwrap();
        assert_eq!((kept.bytes, kept.sha256), (3_000_000, Sha256::of(&content)));
        assert!(fs::read(directory.path().join("bodies/h.org/large.body")).unwrap() == content);
        drop(bodies);
        assert_eq!(files(directory.path()).len(), 1, "nothing else is left");
    }

    #[test]
    fn what_is_too_long_for_memory_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        let mut body = open(&Bodies::new(&settings, true).unwrap(), "https://h.org/", 200, &[], false);
        body.bytes = LONGEST_IN_MEMORY - SMALL as u64;
        body.write(&[0; SMALL]).unwrap();
        body.write(b"x").unwrap();
        assert!(keep(body, "https://h.org/").unwrap().page.is_some_and(|page| page.is_cut && page.bytes.is_empty()));
        settings.inline = Some(Inline::Text);
        let mut body = open(&Bodies::new(&settings, false).unwrap(), "https://h.org/", 200, &[], false);
        body.bytes = LONGEST_IN_MEMORY - SMALL as u64;
        body.write(&[0; SMALL]).unwrap();
        assert!(body.write(b"x").unwrap_err().to_string().contains("--output-dir"));
    }

    #[test]
    fn a_file_that_cannot_be_written_says_which() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.directory = Some(directory.path().to_owned());
        let bodies = Bodies::new(&settings, false).unwrap();
        fs::create_dir_all(directory.path().join("h.org/a.b")).unwrap();
        let url = "https://h.org/a.b";
        let error = keep(open(&bodies, url, 200, &[], false), url).unwrap_err().to_string();
        assert!(error.contains("h.org/a.b") && error.contains("--output-dir"), "{error}");
        drop(bodies);
        assert_eq!(files(directory.path()), [""; 0]);
    }
}
