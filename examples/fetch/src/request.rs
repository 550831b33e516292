//! The task: one URL, fetched in one or several attempts. Everything that can go wrong is data in its [`Record`].

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use polypool::TaskError;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};

use crate::body::Body;

/// What came of a URL: one line of output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Record {
    /// There was a response, whatever its status.
    Answered {
        url: String,
        status: u16,
        bytes: u64,
        seconds: f64,
        attempts: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// There was none, or not all of it.
    Failed { url: String, error: Failure, bytes: u64, seconds: f64, attempts: u64 },
}

/// Why there was no response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// It is no URL that could be fetched.
    BadUrl,
    /// Its host has no address, or can't be reached.
    Connect,
    /// The connection was lost, or what came was not HTTP.
    Request,
    /// One attempt took longer than `--timeout`.
    Timeout,
    /// It was redirected in circles, or too often.
    Redirect,
    /// The body could not be kept in `--output`.
    Output,
    /// The `--deadline` of the batch passed.
    Deadline,
    /// The task itself ended without a record.
    Task,
}

/// What all requests have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) timeout: Duration,
    pub(crate) retries: usize,
    pub(crate) output: Option<PathBuf>,
    /// Whether to use the proxies named in the environment.
    pub(crate) proxies: bool,
}

/// Fetches `url`, the input's URL of this `number`.
#[polypool::task]
pub(crate) async fn get(url: String, number: usize, settings: Settings) -> Record {
    let start = Instant::now();
    let mut attempts = 0;
    let outcome = match parse(&url) {
        Ok(parsed) => persist(&parsed, number, &settings, &mut attempts).await,
        Err(failure) => Err(failure),
    };
    let seconds = start.elapsed().as_secs_f64();
    match outcome {
        Ok(Response { status, bytes, file }) => Record::Answered { url, status, bytes, seconds, attempts, file },
        Err(error) => Record::Failed { url, error, bytes: 0, seconds, attempts },
    }
}

struct Response {
    status: u16,
    bytes: u64,
    file: Option<String>,
}

/// Tries until there is a response, or no sense in trying again.
async fn persist(url: &Url, number: usize, settings: &Settings, attempts: &mut u64) -> Result<Response, Failure> {
    let mut delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_times(settings.retries)
        .with_jitter()
        .build();
    loop {
        *attempts += 1;
        // For whoever gives up on this task before it ends.
        polypool::context().report_progress(*attempts, settings.retries as u64 + 1);
        let failure = match attempt(url, number, settings).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        match delays.next() {
            Some(delay) if matches!(failure.kind, Kind::Connect | Kind::Request) => tokio::time::sleep(delay).await,
            _ => return Err(failure),
        }
    }
}

async fn attempt(url: &Url, number: usize, settings: &Settings) -> Result<Response, Failure> {
    let mut response = client(settings)?.get(url.clone()).timeout(settings.timeout).send().await?;
    let mut body = Body::new(settings.output.as_deref(), number, url)?;
    while let Some(chunk) = response.chunk().await? {
        body.write(&chunk).await?;
    }
    Ok(Response { status: response.status().as_u16(), bytes: body.bytes(), file: body.keep().await? })
}

/// The client of this process; all requests share its connections.
fn client(settings: &Settings) -> reqwest::Result<&'static Client> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client);
    }
    let builder = Client::builder().user_agent(concat!("polypool-fetch/", env!("CARGO_PKG_VERSION")));
    let builder = if settings.proxies { builder } else { builder.no_proxy() };
    let client = builder.build()?;
    Ok(CLIENT.get_or_init(|| client))
}

fn parse(text: &str) -> Result<Url, Failure> {
    let bad = |message: String| Failure { kind: Kind::BadUrl, message };
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(bad("it is not UTF-8".into()));
    }
    let url =
        Url::parse(text).map_err(|error| bad(format!("{error}; write it in full, as in https://example.com/")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(bad(format!("{scheme}: is not supported, only http: and https: are"))),
    }
}

impl Record {
    /// The record of a task that ended without one.
    pub(crate) fn lost(url: String, error: &TaskError, elapsed: Duration, attempts: u64) -> Self {
        let kind = if matches!(error, TaskError::DeadlineExceeded) { Kind::Deadline } else { Kind::Task };
        let error = Failure { kind, message: error.to_string() };
        Record::Failed { url, error, bytes: 0, seconds: elapsed.as_secs_f64(), attempts }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let kind = match &error {
            error if error.is_timeout() => Kind::Timeout,
            error if error.is_connect() => Kind::Connect,
            error if error.is_redirect() => Kind::Redirect,
            error if error.is_builder() => Kind::BadUrl,
            _ => Kind::Request,
        };
        // The url is in the record; what the client was doing, says the kind; why it failed, say the causes.
        let error = error.without_url();
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        let message = if causes.is_empty() { error.to_string() } else { causes.join(": ") };
        Failure { kind, message }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure { kind: Kind::Output, message: format!("the body could not be kept: {error}") }
    }
}
