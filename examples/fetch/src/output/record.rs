//! One line of output: what came of a row.

use serde::{Deserialize, Serialize};

/// What came of a row. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    /// The number of the row; `--resume` goes by it.
    pub(crate) row: u64,
    /// As asked for, without user name and password.
    pub(crate) url: String,
    /// After redirects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) final_url: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) method: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Failure>,
    /// Of the body, after decompression.
    pub(crate) bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    pub(crate) attempts: u32,
    /// From the first attempt's start to the last one's end, waits between them included.
    pub(crate) seconds: f64,
    /// From the start of the last attempt to the head of its response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttfb_seconds: Option<f64>,
    /// Where the body is, relative to the directory of bodies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// When the first attempt started, RFC 3339, UTC.
    pub(crate) started_at: String,
    /// For conditional requests of a later run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_modified: Option<String>,
    /// `--body text` and `--body base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<String>,
    /// What `--extract-…` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) extracted: Option<Vec<String>>,
    /// Where the response stands in the WARC file: offset and length in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warc: Option<super::Place>,
    /// All of the above as JSON, if somebody has had the time.
    #[serde(skip)]
    pub(crate) encoded: Option<Vec<u8>>,
}

impl Record {
    /// Does in advance what takes time when it is written. It must not be changed after that.
    ///
    /// What is in there, and what nobody else asks for, is given up at once, on the thread that has just made it:
    /// allocators are slower where another thread does that. The URL stays, which tells the summary the host; and what
    /// came with the response, which is of another thread.
    pub(crate) fn encode(&mut self) {
        // Where it stands in an archive is known only when it is written.
        if self.warc.is_none() {
            let enough = 512 + self.body.as_ref().map_or(0, String::len);
            let mut json = Vec::with_capacity(enough);
            // What can't be encoded is found again by the writer.
            if serde_json::to_writer(&mut json, self).is_ok() {
                // It has grown to twice what it takes, where much was to be escaped.
                if json.capacity() > enough {
                    json.shrink_to_fit();
                }
                self.encoded = Some(json);
                self.body = None;
                (self.sha256, self.file) = (None, None);
                self.final_url.take_if(|last| *last == self.url);
                (self.id, self.method, self.started_at) = Default::default();
            }
        }
    }
}

/// Why a row has no good response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

/// The kinds of failure; `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The row is no request.
    BadInput,
    /// The host name has no address.
    Dns,
    /// Nobody accepted the connection.
    Connect,
    /// The certificate or the handshake was refused.
    Tls,
    /// No connection within `--connect-timeout`.
    ConnectTimeout,
    /// No head of a response within `--first-byte-timeout`.
    FirstByteTimeout,
    /// No piece of the body within `--idle-timeout`.
    IdleTimeout,
    /// One attempt took longer than `--max-time`.
    Timeout,
    /// The connection was lost before the head of a response.
    Connection,
    /// The body ended before its time.
    Truncated,
    /// A part of the body (206), though the whole was asked for.
    Partial,
    /// What came was not HTTP, or not the encoding it said.
    Protocol,
    /// In circles, or more than `--max-redirs`.
    Redirect,
    /// The body was longer than `--max-filesize`.
    TooLarge,
    /// A response with status 400 or above.
    Status,
    /// `--deny-private`.
    Denied,
    /// `robots.txt` (`--polite`).
    Robots,
    /// The body could not be kept.
    Output,
    /// `--extract-…` failed or took too long.
    Extract,
    /// The `--deadline` of the batch passed.
    Deadline,
    /// The task itself ended without a record.
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Place;

    #[test]
    fn what_waits_encoded_has_its_body_once() {
        let mut record = Record { body: Some("x".repeat(10_000)), ..Record::default() };
        let line = serde_json::to_vec(&record).unwrap();
        record.encode();
        assert!(record.encoded == Some(line) && record.body.is_none());

        let all = |final_url: &str| Record {
            id: "1".into(),
            row: 1,
            url: "http://h/".into(),
            final_url: Some(final_url.into()),
            sha256: Some("e3b0".into()),
            file: Some("h/index.body".into()),
            ..Record::default()
        };
        for (last, stays) in [("http://h/", None), ("http://h/2", Some("http://h/2"))] {
            let mut record = all(last);
            let line = serde_json::to_vec(&record).unwrap();
            record.encode();
            assert_eq!(record.encoded, Some(line));
            assert_eq!((&*record.url, record.final_url.as_deref()), ("http://h/", stays));
            assert_eq!((&*record.id, record.sha256, record.file), ("", None, None));
        }

        // Each takes six bytes.
        let mut record = Record { body: Some("\u{1}".repeat(10_000)), ..Record::default() };
        record.encode();
        let line = record.encoded.unwrap();
        assert!(record.body.is_none() && line.len() > 60_000 && line.capacity() < line.len() + 512);

        // Not yet: its place in the archive is not known.
        let mut record = Record { body: Some("x".into()), warc: Some(Place::At(0, 1)), ..Record::default() };
        record.encode();
        assert_eq!((record.encoded, record.body.as_deref()), (None, Some("x")));
    }
}
