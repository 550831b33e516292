//! The body of a response: counted, and kept in a file if that is wanted.
//!
//! It is written under a temporary name and renamed when it is whole. Whatever happens before, the temporary file is
//! removed with the value. Bytes are written on tokio's own threads for that; to make and to rename a file is one system
//! call each, done in place.

use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: u64,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: File,
    temporary: TempPath,
    target: PathBuf,
}

impl Body {
    /// The body of `url`, to be kept in `directory`, if there is one.
    pub(crate) fn new(directory: Option<&Path>, number: usize, url: &Url) -> io::Result<Self> {
        let Some(directory) = directory else {
            return Ok(Body { bytes: 0, kept: None });
        };
        let target = directory.join(name(number, url));
        let mut builder = tempfile::Builder::new();
        // As any new file, within the umask; a temporary one would be for its owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let (file, temporary) = builder.prefix(".fetch-").suffix(".part").tempfile_in(directory)?.into_parts();
        Ok(Body { bytes: 0, kept: Some(Kept { file: File::from_std(file), temporary, target }) })
    }

    pub(crate) async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.bytes += chunk.len() as u64;
        match &mut self.kept {
            Some(kept) => kept.file.write_all(chunk).await,
            None => Ok(()),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The body is whole: gives its file the right name, and tells it.
    pub(crate) async fn keep(self) -> io::Result<Option<String>> {
        let Some(Kept { mut file, temporary, target }) = self.kept else {
            return Ok(None);
        };
        file.flush().await?;
        drop(file.into_std().await);
        temporary.persist(&target)?;
        Ok(Some(target.display().to_string()))
    }
}

/// `000017-example.com-a-b.html`: the number makes it unique among those of a run, and the rest says what it is. Nothing in
/// it can lead out of the directory, and a password in the URL is not in it.
fn name(number: usize, url: &Url) -> String {
    const LONGEST: usize = 100;
    let place = [url.host_str(), Some(url.path()), url.query()].map(Option::unwrap_or_default).join("-");
    let words = place.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    let place: String = words.collect::<Vec<_>>().join("-").chars().take(LONGEST).collect();
    format!("{number:06}-{}", place.trim_end_matches(['.', '-']))
}
