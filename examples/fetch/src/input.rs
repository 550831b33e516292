//! The URLs: from the command line, from a file or from standard input. They are read as they are needed, so a list may
//! be as long as it likes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures_util::{Stream, stream};
use polypool::{TaskFuture, ThreadPool};
use tokio::sync::mpsc;

/// Where the URLs come from: first those of the command line, then the lines of a file or of standard input.
#[derive(Debug)]
pub(crate) struct Source {
    named: Vec<String>,
    lines: Option<Lines>,
}

#[derive(Debug)]
struct Lines {
    /// `None` is standard input.
    path: Option<PathBuf>,
    /// Opened before anything runs.
    file: Option<File>,
}

impl Source {
    /// The given URLs alone.
    pub(crate) fn named(named: Vec<String>) -> Self {
        Source { named, lines: None }
    }

    /// The given URLs, then the lines of a file; `-` is standard input.
    pub(crate) fn with_lines(named: Vec<String>, path: &Path) -> Result<Self> {
        let lines = if path == Path::new("-") {
            Lines { path: None, file: None }
        } else {
            let unreadable = || format!("--from can't read {}", path.display());
            let file = File::open(path).with_context(unreadable)?;
            ensure!(!file.metadata().with_context(unreadable)?.is_dir(), "{}: it is a directory", unreadable());
            Lines { path: Some(path.to_owned()), file: Some(file) }
        };
        Ok(Source { named, lines: Some(lines) })
    }

    /// How many there are, if that can be told without losing any.
    pub(crate) fn count(&self) -> Option<u64> {
        let listed = match &self.lines {
            None => 0,
            Some(Lines { path: Some(path), .. }) if path.is_file() => {
                urls(File::open(path).ok()?).map_while(Result::ok).count()
            }
            Some(_) => return None,
        };
        Some((self.named.len() + listed) as u64)
    }
}

/// Reads the URLs on a worker, a few ahead of the stream: reading blocks, and the program must not wait for slow input
/// while responses come in. The future says how the reading ended.
pub(crate) fn read(source: Source) -> Result<(impl Stream<Item = String>, TaskFuture<Result<()>>)> {
    const AHEAD: usize = 64;
    // A pool of its own, so that nobody who ends the requests has to wait for input. Dropping it lets the reader finish.
    let pool = ThreadPool::builder().workers(1).name_prefix("input").build()?;
    let (sender, mut receiver) = mpsc::channel(AHEAD);
    let reading = pool.spawn(move || {
        let (name, input): (String, Box<dyn Read>) = match source.lines {
            None => (String::new(), Box::new(io::empty())),
            Some(Lines { path: Some(path), file: Some(file) }) => (path.display().to_string(), Box::new(file)),
            Some(_) => ("standard input".into(), Box::new(io::stdin())),
        };
        for url in source.named.into_iter().map(Ok).chain(urls(input)) {
            let url = url.with_context(|| format!("can't read {name}"))?;
            if sender.blocking_send(url).is_err() {
                break; // The stream is gone.
            }
        }
        Ok(())
    });
    Ok((stream::poll_fn(move |cx| receiver.poll_recv(cx)), reading))
}

/// One URL a line. Blank lines and lines that start with `#` are no URLs. A line that is not UTF-8 becomes a bad URL.
fn urls(input: impl Read) -> impl Iterator<Item = io::Result<String>> {
    BufReader::new(input).split(b'\n').filter_map(|line| {
        let text = |line: Vec<u8>| String::from_utf8_lossy(&line).trim_start_matches('\u{feff}').trim().to_owned();
        let line = line.map(text);
        (!matches!(&line, Ok(line) if line.is_empty() || line.starts_with('#'))).then_some(line)
    })
}
