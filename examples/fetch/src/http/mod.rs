//! One attempt at a request: from sending it, over redirects, to the end of the body, or to what went wrong.
//!
//! ```text
//! attempt ── permit ──► guard, robots      may this URL be fetched at all?
//!    │          │
//!    │        send ───► client, auth       one hop; again for every redirect
//!    │          │       payload, cookies,
//!    │          │       redirect
//!    │          ▼
//!    │       receive ─► output::Bodies     the body, piece by piece
//!    ▼
//! failure: the kind, the message, whether to try again
//! ```
//!
//! `watch` limits the time of each step. Whether and when there is another attempt is up to `engine`; where bodies go
//! is up to `output`.

mod auth;
mod client;
mod cookies;
mod decompress;
mod failure;
mod guard;
mod payload;
mod redirect;
mod robots;
mod validators;
mod watch;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName};
use reqwest::header::{HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use reqwest::header::{LAST_MODIFIED, RANGE};
use reqwest::{Method, Response, Url};
use tokio::task::yield_now;
use tokio::time::Instant;

use self::auth::Credentials;
use self::client::Clients;
use self::cookies::Cookies;
use self::decompress::{Decoder, most_compressed};
use self::failure::{Fault, Stage};
use self::redirect::Hop;
use self::robots::{Answer, Robots};
use self::validators::{Earlier, Validators};
use self::watch::{Limits, Phase, Watch};
use crate::output::record::{Kind, Record};
use crate::output::{Bodies, Body, Head, Partial};
use crate::request::{Payload, Request, redacted};
use crate::settings::{Family, HttpSettings, Proxy, Settings};

/// Bodies that nobody wants are read to the end if there is not more than this, so that the connection can be used
/// again.
const SPARE: u64 = 64 * 1024;

/// After so many pieces of a body, the other attempts have their turn.
const PIECES: u32 = 64;

/// How often robots.txt may redirect (RFC 9309: at least five times).
const ROBOTS_REDIRECTS: usize = 5;

/// Sends requests. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: HttpSettings,
    clients: Clients,
    credentials: Credentials,
    cookies: Option<Cookies>,
    earlier: Option<Earlier>,
    robots: Option<Robots>,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// All that the attempt itself knows; what the row is and how long everything took is left empty.
    pub(crate) record: Box<Record>,
    /// Another attempt could end differently.
    pub(crate) transient: bool,
    /// How long the server asked to wait, however long that is.
    pub(crate) retry_after: Option<Duration>,
    /// The server, or the way to it, has too much to do: 429, 503 or a timeout.
    pub(crate) overload: bool,
    /// The whole body, which is still to be kept.
    pub(crate) body: Option<Body>,
}

impl Fetcher {
    /// Reads all files that the settings name.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let settings = &settings.http;
        Ok(Fetcher(Arc::new(Inner {
            settings: settings.clone(),
            clients: Clients::new(settings)?,
            credentials: Credentials::new(settings)?,
            cookies: settings.cookies.then(Cookies::default),
            earlier: settings.if_changed.as_deref().map(Earlier::open).transpose()?,
            robots: settings.polite.then(|| Robots::new(&settings.user_agent)),
        })))
    }

    /// How long to wait between two requests to the origin of this one, if its robots.txt has said so by now.
    pub(crate) fn crawl_delay(&self, request: &Request) -> Option<Duration> {
        self.0.robots.as_ref()?.delay(&request.origin())
    }

    /// Tries once.
    pub(crate) async fn attempt(&self, request: &Request, bodies: &Bodies) -> Attempt {
        let (limits, start) = (Limits::new(&self.0.settings, request.timeout), Instant::now());
        let timer = pin!(limits.timer(start));
        let mut watch = Watch::new(limits, start, timer);
        let record = Box::default();
        let mut attempt = Attempt { record, transient: false, retry_after: None, overload: false, body: None };
        if let Err(fault) = self.0.exchange(request, bodies, &mut watch, &mut attempt).await {
            attempt.record.error = Some(fault.failure);
            attempt.transient = fault.transient;
            attempt.retry_after = fault.retry_after;
            attempt.overload = fault.overload;
        }
        attempt
    }
}

/// What this attempt asks for, in place of the whole body.
#[derive(Debug)]
enum Want {
    All,
    /// Nothing, if it is still the one that an earlier run has seen.
    News(Validators),
    /// What is missing of it.
    Rest(Box<Partial>),
}

impl Inner {
    /// From the request to the end of the body. What is learned on the way is noted, whatever comes after.
    async fn exchange(
        &self,
        request: &Request,
        bodies: &Bodies,
        watch: &mut Watch<'_>,
        attempt: &mut Attempt,
    ) -> Result<(), Fault> {
        let mut want = self.want(request, bodies);
        let (mut response, resumed) = loop {
            let mut response = self.follow(request, &want, watch, &mut attempt.record).await?;
            want = match (want, response.status().as_u16()) {
                (Want::Rest(partial), 206) => match total(response.headers(), partial.len) {
                    Some(total) => break (response, Some((partial, total))),
                    None => Want::All, // some other part
                },
                // There is no such part: it has become shorter.
                (Want::Rest(_), 416) => Want::All,
                (Want::News(validators), 304) => {
                    describe(&response, request, watch, &mut attempt.record);
                    validators.keep(&mut attempt.record);
                    return Ok(());
                }
                _ => break (response, None),
            };
            self.drain(&mut response, watch).await;
        };
        describe(&response, request, watch, &mut attempt.record);
        let status = response.status();
        if status == 206 && resumed.is_none() && !request.headers.contains_key(RANGE) {
            attempt.record.bytes = self.drain(&mut response, watch).await;
            return Err(Fault::new(Kind::Partial, "a part of the body came (206), though the whole was asked for"));
        }
        let fault = (status.as_u16() >= 400).then(|| Fault::status(status, response.headers()));
        let has_body = request.method != Method::HEAD && status != 304;
        if fault.is_some() && !(has_body && bodies.wants(status.as_u16())) {
            attempt.record.bytes = self.drain(&mut response, watch).await;
            return fault.map_or(Ok(()), Err);
        }
        let received =
            if has_body { self.receive(response, request, bodies, resumed, watch, attempt).await } else { Ok(()) };
        // What is wrong with the body of an error is of no interest.
        fault.map_or(received, Err)
    }

    fn want(&self, request: &Request, bodies: &Bodies) -> Want {
        const CONDITIONS: [HeaderName; 6] =
            [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
        let own = !request.headers.is_empty() && CONDITIONS.iter().any(|name| request.headers.contains_key(name));
        if !own
            && request.method == Method::GET
            && let Some(partial) = bodies.partial(request)
        {
            return Want::Rest(partial);
        }
        self.earlier.as_ref().and_then(|earlier| earlier.find(request)).map_or(Want::All, Want::News)
    }

    /// Sends a request, and whatever redirects make of it, until there is a response that leads nowhere else.
    async fn follow(
        &self,
        request: &Request,
        want: &Want,
        watch: &mut Watch<'_>,
        record: &mut Record,
    ) -> Result<Response, Fault> {
        let mut hop = Hop::first(request);
        record.final_url = None;
        loop {
            self.permit(&hop.url).await?;
            let mut response = self.send(&hop, request, want, watch).await?;
            match hop.next(response.status(), response.headers(), self.settings.max_redirects)? {
                None => return Ok(response),
                Some(next) => hop = next,
            }
            // Should it fail there, this is where.
            record.final_url = Some(redacted(&hop.url));
            self.drain(&mut response, watch).await;
        }
    }

    /// Whether a URL may be fetched.
    async fn permit(&self, url: &Url) -> Result<(), Fault> {
        if self.settings.deny_private {
            guard::check(url).map_err(|denied| Fault::new(Kind::Denied, denied.to_string()))?;
        }
        match &self.robots {
            Some(robots) => robots.permit(url, || self.ask_robots(Robots::place(url))).await,
            None => Ok(()),
        }
    }

    /// Sends the request of one hop and waits for the head of the response.
    async fn send(
        &self,
        hop: &Hop<'_>,
        request: &Request,
        want: &Want,
        watch: &mut Watch<'_>,
    ) -> Result<Response, Fault> {
        let mut url = Url::clone(&hop.url);
        let named = auth::take(&mut url);
        let mut headers = request.headers.clone();
        hop.clean(&mut headers);
        if !headers.contains_key(AUTHORIZATION) {
            let user = named.or_else(|| if hop.trusted { self.credentials.of_user(&url) } else { None });
            if let Some(user) = user {
                headers.insert(AUTHORIZATION, user);
            }
        }
        match want {
            Want::All => {}
            Want::News(validators) => validators.apply(&mut headers),
            Want::Rest(partial) => ask_for_rest(partial, &mut headers),
        }
        if let Some(cookies) = &self.cookies {
            cookies.add(&mut headers, &url);
        }
        let client = self.clients.get(&url)?;
        let mut wire = reqwest::Request::new(hop.method.clone(), url);
        *wire.headers_mut() = headers;
        if hop.body {
            payload::attach(&request.body, &mut wire).await?;
        }
        let response = watch.over(Phase::Head, client.execute(wire)).await?;
        let response = response.map_err(|error| self.fault(&error, Stage::Head))?;
        if let Some(cookies) = &self.cookies {
            cookies.keep(response.headers(), response.url());
        }
        Ok(response)
    }

    /// Reads the body.
    async fn receive(
        &self,
        mut response: Response,
        request: &Request,
        bodies: &Bodies,
        resumed: Option<(Box<Partial>, Option<u64>)>,
        watch: &mut Watch<'_>,
        attempt: &mut Attempt,
    ) -> Result<(), Fault> {
        let record = &mut attempt.record;
        let (partial, total) = resumed.map_or((None, None), |(partial, total)| (Some(partial), total));
        let most = self.settings.max_body.unwrap_or(u64::MAX);
        record.bytes = partial.as_ref().map_or(0, |partial| partial.len);
        let asked = partial.is_none() && !request.headers.contains_key(ACCEPT_ENCODING);
        let mut decoder = if self.settings.compressed { Decoder::of(&mut response, asked).transpose()? } else { None };
        // Of what comes, which may be compressed.
        let mut left = match decoder {
            None => most.saturating_sub(record.bytes),
            Some(_) => most_compressed(most),
        };
        if response.content_length().is_some_and(|length| length > left) {
            return Err(too_large(most));
        }
        let head = Head {
            status: response.status().as_u16(),
            version: response.version(),
            headers: response.headers(),
            final_url: response.url(),
            resumed: partial,
        };
        let mut body = bodies.open(request, head).map_err(|error| Fault::output(&error))?;
        let mut write = |piece: &[u8]| {
            record.bytes += piece.len() as u64;
            if record.bytes > most {
                body.discard();
                Err(too_large(most))
            } else {
                body.write(piece).map_err(|error| Fault::output(&error))
            }
        };
        // What decompresses well keeps coming without a pause; the others want to run as well. Attempts have no budget.
        let mut pieces = 0_u32;
        let mut pause = async || {
            pieces = (pieces + 1) % PIECES;
            if pieces == 0 {
                yield_now().await;
            }
        };
        let mut behind = 0;
        loop {
            let piece = watch.over(Phase::Piece, response.chunk()).await?;
            let Some(piece) = piece.map_err(|error| self.fault(&error, Stage::Body))? else { break };
            match &mut decoder {
                // To the end of the body, so that the connection can be used again and what is missing is missed.
                Some(decoder) if decoder.is_over() => {
                    behind += piece.len() as u64;
                    if behind > SPARE {
                        break;
                    }
                }
                None => {
                    write(&piece)?;
                    pause().await;
                }
                Some(decoder) => {
                    // It may be compressed to nothing, and never end.
                    left = left.checked_sub(piece.len() as u64).ok_or_else(|| too_large(most))?;
                    let mut rest = &piece[..];
                    while let Some(piece) = decoder.next(&mut rest)? {
                        write(piece)?;
                        pause().await;
                    }
                }
            }
        }
        decoder.map_or(Ok(()), Decoder::finish)?;
        if let Some(total) = total.filter(|&total| total != record.bytes) {
            let message = format!("{} bytes of {total} have come, in several parts", record.bytes);
            return Err(Fault::new(Kind::Truncated, message));
        }
        attempt.body = Some(body);
        Ok(())
    }

    /// Asks for a robots.txt; once more if that fails, since it decides about the whole origin.
    fn ask_robots(&self, place: Url) -> BoxFuture<'_, Result<Answer, Fault>> {
        const PAUSE: Duration = Duration::from_secs(1);
        let ask = move || {
            let place = place.clone();
            async move {
                let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
                let request = Request { url: place, method: Method::GET, headers, body: Payload::None, timeout: None };
                let (limits, start) = (Limits::new(&self.settings, None), Instant::now());
                let timer = pin!(limits.timer(start));
                let mut watch = Watch::new(limits, start, timer);
                let mut hop = Hop::first(&request);
                hop.trusted = false; // it is for everybody
                loop {
                    if self.settings.deny_private {
                        guard::check(&hop.url).map_err(|denied| Fault::new(Kind::Denied, denied.to_string()))?;
                    }
                    let mut response = self.send(&hop, &request, &Want::All, &mut watch).await?;
                    match hop.next(response.status(), response.headers(), ROBOTS_REDIRECTS) {
                        Ok(Some(next)) => hop = next,
                        // Too many redirects count as no file.
                        Ok(None) | Err(_) => return self.read_robots(&mut response, &mut watch).await,
                    }
                    self.drain(&mut response, &mut watch).await;
                }
            }
        };
        async move {
            match ask().await {
                Err(fault) if fault.transient => {
                    tokio::time::sleep(PAUSE).await;
                    ask().await
                }
                outcome => outcome,
            }
        }
        .boxed()
    }

    async fn read_robots(&self, response: &mut Response, watch: &mut Watch<'_>) -> Result<Answer, Fault> {
        let status = response.status();
        if !status.is_success() {
            self.drain(response, watch).await;
            return Ok(Answer { status, text: Vec::new() });
        }
        // Some servers compress it though they were asked not to.
        let undecodable = |_| Fault::new(Kind::Protocol, "it is compressed in a way that can't be decoded");
        let mut decoder = Decoder::of(response, true).transpose().map_err(undecodable)?;
        let (mut text, mut left) = (Vec::new(), robots::LONGEST);
        while left > 0 && text.len() < robots::LONGEST {
            let piece = watch.over(Phase::Piece, response.chunk()).await?;
            let Some(piece) = piece.map_err(|error| self.fault(&error, Stage::Body))? else {
                decoder.take().map_or(Ok(()), Decoder::finish)?;
                break;
            };
            left = left.saturating_sub(piece.len());
            match &mut decoder {
                None => text.extend_from_slice(&piece),
                Some(decoder) => {
                    let mut rest = &piece[..];
                    while let Some(piece) = decoder.next(&mut rest)?
                        && text.len() < robots::LONGEST
                    {
                        text.extend_from_slice(piece);
                    }
                }
            }
        }
        text.truncate(robots::LONGEST);
        Ok(Answer { status, text })
    }

    /// Reads what is left of a body that nobody wants, if it is short; says how much there was, as far as it was read.
    /// Otherwise the connection is closed, when the response is dropped.
    async fn drain(&self, response: &mut Response, watch: &mut Watch<'_>) -> u64 {
        if response.content_length().is_some_and(|length| length > SPARE) {
            return 0;
        }
        let mut decoder =
            if self.settings.compressed { Decoder::of(response, false).and_then(Result::ok) } else { None };
        let (mut bytes, mut read) = (0, 0);
        let reading = async {
            while read <= SPARE
                && let Ok(Some(piece)) = response.chunk().await
            {
                read += piece.len() as u64;
                match &mut decoder {
                    None => bytes += piece.len() as u64,
                    Some(decoder) => {
                        let mut rest = &piece[..];
                        // No longer than is good for those who wait.
                        while bytes <= 16 * SPARE
                            && let Ok(Some(piece)) = decoder.next(&mut rest)
                        {
                            bytes += piece.len() as u64;
                        }
                    }
                }
            }
        };
        let _ = watch.over(Phase::Rest, reading).await;
        bytes
    }

    fn fault(&self, error: &reqwest::Error, stage: Stage) -> Fault {
        let mut fault = Fault::client(error, stage, self.settings.connect_timeout);
        if fault.failure.kind == Kind::Connect
            && let Proxy::At { except, .. } = &self.settings.proxy
            && except.is_empty()
        {
            fault.failure.message += " (with --proxy)";
        }
        // A host that has no such address looks as if nobody were there.
        if fault.failure.kind == Kind::Connect {
            fault.failure.message += match self.settings.family {
                None => "",
                Some(Family::V4) => " (with --ipv4)",
                Some(Family::V6) => " (with --ipv6)",
            };
        }
        fault
    }
}

/// Notes what the head of a response says. Headers may have any bytes; in a record they are text.
fn describe(response: &Response, request: &Request, watch: &Watch<'_>, record: &mut Record) {
    let header =
        |name| response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    record.status = Some(response.status().as_u16());
    record.ttfb_seconds = Some((watch.elapsed().as_secs_f64() * 1e6).round() / 1e6);
    // Otherwise it is the one that was asked for, which whoever completes the record knows.
    record.final_url = (*response.url() != request.url).then(|| response.url().as_str().to_owned());
    record.content_type = header(CONTENT_TYPE);
    record.etag = header(ETAG);
    record.last_modified = header(LAST_MODIFIED);
}

fn too_large(most: u64) -> Fault {
    Fault::new(Kind::TooLarge, format!("the body is longer than {most} bytes (--max-filesize)"))
}

/// Asks for what is missing, as long as it is still the same body.
fn ask_for_rest(partial: &Partial, headers: &mut HeaderMap) {
    let Ok(validator) = HeaderValue::from_str(&partial.validator) else { return };
    if let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", partial.len)) {
        headers.insert(RANGE, range);
        headers.insert(IF_RANGE, validator);
        // A part of something compressed is of no use.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// The length of the whole body, if it is told, by a `Content-Range` that goes on at `start` and doesn't stop short.
fn total(headers: &HeaderMap, start: u64) -> Option<Option<u64>> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes")?.trim_start();
    let (part, total) = range.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first == start && last >= first && total.is_none_or(|total: u64| total.checked_sub(1) == Some(last)))
        .then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_rest_of_a_body_goes_on_with_it() {
        let total =
            |value: &str| total(&HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_str(value).unwrap())]), 100);
        assert_eq!(total("bytes 100-199/200"), Some(Some(200)));
        assert_eq!(total("bytes 100-199/*"), Some(None));
        for wrong in [
            "bytes 0-199/200",
            "bytes 100-150/200",
            "bytes 101-199/200",
            "bytes */200",
            "items 100-199/200",
            "100",
            "bytes 100-99/100",
            "",
        ] {
            assert_eq!(total(wrong), None, "{wrong}");
        }
    }
}
