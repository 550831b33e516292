//! What a run was asked to do: the command line, the environment and the config file, read and checked (`cli`), in the
//! words of the parts that do it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) input: InputSettings,
    pub(crate) limits: Limits,
    pub(crate) retry: RetrySettings,
    pub(crate) http: HttpSettings,
    pub(crate) output: OutputSettings,
    pub(crate) extract: Option<ExtractSettings>,
    pub(crate) report: ReportSettings,
    /// Whether URLs that are paths (`/status/404`) are fetched from a server of our own.
    pub(crate) demo: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct InputSettings {
    /// What paths are relative to; without one they are no URLs.
    pub(crate) base: Option<Url>,
    /// From the command line.
    pub(crate) urls: Vec<String>,
    /// Files, in order, after `urls`; `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) format: InputFormat,
    /// Of a CSV file; by default the column named `url`.
    pub(crate) column: Option<String>,
    /// Whether `{1..500}` and `{a,b}` in a URL stand for several.
    pub(crate) templates: bool,
    /// A bad row ends the program before anything is sent.
    pub(crate) strict: bool,
    /// A request that has been there is skipped.
    pub(crate) dedupe: bool,
    /// Whether an id is that of one request only, as files are named after it.
    pub(crate) own_ids: bool,
    /// Whether a row may have a file of this machine sent.
    pub(crate) file_bodies: bool,
    /// What every request has unless its row says otherwise.
    pub(crate) defaults: RequestDefaults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InputFormat {
    /// By the name: .csv, .tsv, .jsonl and .ndjson; anything else has a URL a line
    Auto,
    /// A URL a line; lines that start with # are comments
    Lines,
    /// Comma-separated, with a header line
    Csv,
    /// Tab-separated, with a header line
    Tsv,
    /// A JSON object a line: url, method, headers, body, timeout, id
    Jsonl,
}

/// What every request has unless its row says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct RequestDefaults {
    pub(crate) method: reqwest::Method,
    pub(crate) headers: HeaderMap,
    /// Put behind the query of each URL.
    pub(crate) query: Option<String>,
    pub(crate) body: crate::request::Payload,
}

/// How much at once, and how fast.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) concurrency: Concurrency,
    pub(crate) per_host: usize,
    /// Requests a second.
    pub(crate) rate: Option<Rate>,
    pub(crate) rate_per_host: Option<Rate>,
    /// For the whole batch.
    pub(crate) deadline: Option<Duration>,
    /// How many rows are read ahead, to find hosts that have nothing to do.
    pub(crate) lookahead: usize,
    /// How long requests that run may take to finish after an interruption.
    pub(crate) grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concurrency {
    Fixed(usize),
    /// Between 1 and this, found while running.
    Auto {
        most: usize,
    },
}

/// A token bucket: one request every `interval`, and `burst` at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) interval: Duration,
    pub(crate) burst: NonZeroU32,
}

#[derive(Clone, Debug)]
pub(crate) struct RetrySettings {
    /// Attempts after the first.
    pub(crate) times: u32,
    /// The first delay; each next one is twice as long, up to `max_delay`, with jitter.
    pub(crate) min_delay: Duration,
    /// Also the most that a `Retry-After` is waited for: one that asks for more is not retried.
    pub(crate) max_delay: Duration,
    /// Methods that are not idempotent as well.
    pub(crate) unsafe_methods: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    pub(crate) version: HttpVersion,
    pub(crate) connect_timeout: Duration,
    /// From the request to the head of the response.
    pub(crate) first_byte_timeout: Option<Duration>,
    /// Between two pieces of a body.
    pub(crate) idle_timeout: Option<Duration>,
    /// One attempt, from the connection to the end of the body; a row may say otherwise.
    pub(crate) max_time: Option<Duration>,
    pub(crate) max_redirects: usize,
    /// After decompression.
    pub(crate) max_body: Option<u64>,
    pub(crate) compressed: bool,
    /// Keeps the cookies that servers set, for the run.
    pub(crate) cookies: bool,
    pub(crate) auth: Auth,
    pub(crate) netrc: Option<PathBuf>,
    pub(crate) user_agent: String,
    pub(crate) proxy: Proxy,
    pub(crate) ca_certificates: Vec<PathBuf>,
    /// PEM, with the key in it or in a file of its own.
    pub(crate) client_certificate: Option<(PathBuf, Option<PathBuf>)>,
    pub(crate) insecure: bool,
    /// Nothing older.
    pub(crate) tls13: bool,
    pub(crate) resolve: Vec<(String, u16, Vec<SocketAddr>)>,
    /// The only addresses that are connected to.
    pub(crate) family: Option<Family>,
    pub(crate) deny_private: bool,
    /// Asks robots.txt.
    pub(crate) polite: bool,
    /// Records of an earlier run, whose validators make requests conditional.
    pub(crate) if_changed: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Any,
    Http1,
    Http2PriorKnowledge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

#[derive(Clone, Debug)]
pub(crate) enum Auth {
    None,
    Basic { user: String, password: String },
    Bearer(String),
}

#[derive(Clone, Debug)]
pub(crate) enum Proxy {
    /// Those named in the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`).
    Environment {
        http: Option<Url>,
        https: Option<Url>,
    },
    None,
    At {
        url: Url,
        except: String,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct OutputSettings {
    /// `None` is standard output.
    pub(crate) records: Option<PathBuf>,
    /// Goes on where the run that wrote `records` stopped.
    pub(crate) resume: bool,
    /// With `resume`: rows that failed are done again.
    pub(crate) retry_failed: bool,
    pub(crate) ordered: bool,
    /// Where bodies are kept.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) names: Names,
    pub(crate) inline: Option<Inline>,
    pub(crate) warc: Option<PathBuf>,
    /// Bodies of responses with status 400 and above as well.
    pub(crate) keep_errors: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Names {
    /// host/path of the URL, made safe
    Path,
    /// a hash of the request
    Hash,
    /// the id of the row, made safe
    Id,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Inline {
    /// as text; what isn't UTF-8 is replaced
    Text,
    /// as base64
    Base64,
}

#[derive(Clone, Debug)]
pub(crate) struct ExtractSettings {
    pub(crate) rule: crate::extract::Rule,
    /// For one page.
    pub(crate) timeout: Duration,
    pub(crate) workers: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct ReportSettings {
    pub(crate) quiet: bool,
    pub(crate) summary_json: Option<PathBuf>,
    /// The share of failed rows, from 0 to 1, above which the exit code is 1.
    pub(crate) fail_above: f64,
}
