//! From flags to settings: reads the files that flags name, works out what follows from several flags together, and
//! refuses by name what doesn't go together.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use clap::ArgMatches;
use clap::parser::ValueSource;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderValue, REFERER, USER_AGENT,
};
use reqwest::{Method, Url};

use super::args::{self, Args};
use super::{Surroundings, values};
use crate::input::header::{header, header_name, method};
use crate::request::Payload;
use crate::settings::{
    Auth, Concurrency, ExtractSettings, Family, HttpSettings, HttpVersion, InputFormat, InputSettings, Limits, Names,
    OutputSettings, Proxy, Rate, ReportSettings, RequestDefaults, RetrySettings, Settings,
};

/// Requests at once to a host that is treated politely.
const POLITE: usize = 2;

/// A body above this is read anew for each request instead of being kept.
const LARGE: u64 = 1 << 20;

type Result<T> = std::result::Result<T, String>;

pub(super) fn settings(args: Args, matches: &ArgMatches, around: &Surroundings<'_>) -> Result<Settings> {
    together(&args, matches)?;
    let limits = limits(&args.limits, args.http.polite);
    let files = files(&args.input, around)?;
    let stdin = files.iter().any(|file| file == Path::new("-"));
    let (defaults, user_agent) = request(&args.request, matches, stdin)?;
    let http = http(args.http, args.time, &args.request, user_agent, args.input.demo, around)?;
    let rule = args.extract.extract_regex.or(args.extract.extract_css);
    let workers = args.extract.extract_workers.map(usize::from);
    Ok(Settings {
        limits,
        input: InputSettings {
            base: None,
            urls: args.input.urls.into_iter().chain(args.input.url).collect(),
            files,
            format: args.input.format,
            column: args.input.column,
            templates: !args.input.globoff,
            strict: args.input.strict,
            dedupe: args.input.dedupe,
            own_ids: args.output.names == Names::Id && args.output.output_dir.is_some(),
            file_bodies: !http.deny_private,
            defaults,
        },
        retry: RetrySettings {
            times: args.retry.retry,
            min_delay: args.retry.retry_delay.min(args.retry.retry_max_delay),
            max_delay: args.retry.retry_max_delay,
            unsafe_methods: args.retry.retry_unsafe,
        },
        http,
        output: OutputSettings {
            records: args.output.records.filter(|path| path != Path::new("-")),
            resume: args.output.resume,
            retry_failed: args.output.retry_failed,
            ordered: args.output.ordered,
            directory: args.output.output_dir,
            names: args.output.names,
            inline: args.output.body,
            warc: args.output.warc,
            keep_errors: args.output.keep_errors,
        },
        extract: rule.map(|rule| ExtractSettings {
            rule,
            timeout: args.extract.extract_timeout,
            workers: workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)),
        }),
        report: ReportSettings {
            quiet: args.report.quiet,
            summary_json: args.report.summary_json,
            fail_above: args.report.fail_above,
        },
        demo: args.input.demo,
    })
}

/// What goes together, and what would have no effect. The latter is said of what was typed alone: a config file may
/// have settings for things that are not always done.
fn together(args: &Args, matches: &ArgMatches) -> Result<()> {
    let Args { input, request, limits, http, output, extract, .. } = args;
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let data = [&request.data, &request.data_raw, &request.data_binary, &request.data_urlencode];
    let has_data = data.iter().any(|data| !data.is_empty());
    let has_body = has_data || !request.json.is_empty();
    let is_table = |path: &PathBuf| path.extension().is_some_and(|end| end == "csv" || end == "tsv");
    let tables = match input.format {
        InputFormat::Auto => input.from.iter().any(is_table),
        format => matches!(format, InputFormat::Csv | InputFormat::Tsv),
    };
    let to_file = output.records.as_deref().is_some_and(|path| path != Path::new("-"));
    let rated = limits.rate.is_some() || limits.rate_per_host.is_some();
    let extracts = extract.extract_regex.is_some() || extract.extract_css.is_some();
    let same = |path: &Option<PathBuf>| path.is_some() && *path == output.records;
    let rules = [
        (
            extract.extract_regex.is_some() && extract.extract_css.is_some(),
            "give one of --extract-regex and --extract-css",
        ),
        (http.http1 && http.http2_prior_knowledge, "give one of --http1.1 and --http2-prior-knowledge"),
        (request.user.is_some() && request.oauth2_bearer.is_some(), "give one of --user and --oauth2-bearer"),
        (has_data && !request.json.is_empty(), "give one of --json and --data"),
        (http.ipv4 && http.ipv6, "give one of --ipv4 and --ipv6"),
        (request.get && !request.json.is_empty(), "--get puts --data into the URL, not --json"),
        (request.get && !has_body, "--get goes with --data: it puts that into the URL"),
        (request.head && has_body && !request.get, "--head sends no body: leave out --data, or add --get"),
        (request.head && request.request.is_some(), "--head is a method of its own: leave out --request"),
        (output.resume && !to_file, "--resume goes on with a file of records: name it with --records FILE"),
        (output.retry_failed && !output.resume, "--retry-failed goes with --resume"),
        (
            same(&http.if_changed) && !output.resume,
            "--if-changed and --records name the same file, which would be lost",
        ),
        (same(&args.report.summary_json), "--summary-json and --records name the same file"),
        (
            !to_file && args.report.summary_json.as_deref() == Some(Path::new("-")),
            "--summary-json - goes with --records FILE: without it the records are on standard output",
        ),
        (http.key.is_some() && http.cert.is_none(), "--key goes with --cert FILE"),
        (http.proxy_user.is_some() && http.proxy.is_none(), "--proxy-user goes with --proxy URL"),
        (http.deny_private && input.demo, "--demo is on this machine, which --deny-private refuses"),
        (typed("column") && !tables, "--column goes with tables: add --format csv or --format tsv"),
        (typed("names") && output.output_dir.is_none(), "--names goes with --output-dir DIR"),
        (typed("burst") && !rated, "--burst goes with --rate or --rate-per-host"),
        (typed("extract_timeout") && !extracts, "--extract-timeout goes with --extract-regex or --extract-css"),
        (typed("extract_workers") && !extracts, "--extract-workers goes with --extract-regex or --extract-css"),
    ];
    match rules.into_iter().find(|(broken, _)| *broken) {
        Some((_, why)) => Err(why.into()),
        None => Ok(()),
    }
}

fn files(args: &args::Input, around: &Surroundings<'_>) -> Result<Vec<PathBuf>> {
    if args.urls.is_empty() && args.url.is_empty() && args.from.is_empty() && !args.demo {
        if around.terminal {
            return Err("there are no URLs: give some, or a file with --from FILE, or try --demo".into());
        }
        return Ok(vec!["-".into()]);
    }
    Ok(args.from.clone())
}

fn limits(args: &args::Limits, polite: bool) -> Limits {
    let (Concurrency::Fixed(most) | Concurrency::Auto { most }) = args.concurrency;
    let rate = |interval: Duration| {
        let together =
            (Duration::from_millis(50).as_nanos() / interval.as_nanos().max(1)).try_into().unwrap_or(u32::MAX);
        Rate { interval, burst: NonZeroU32::new(args.burst.unwrap_or(together)).unwrap_or(NonZeroU32::MIN) }
    };
    Limits {
        concurrency: args.concurrency,
        per_host: args.per_host.map_or(if polite { POLITE.min(most) } else { most }, |number| number as usize),
        rate: args.rate.map(rate),
        rate_per_host: args.rate_per_host.map(rate),
        deadline: args.deadline,
        lookahead: args.lookahead as usize,
        grace: args.grace,
    }
}

/// Also the name of the client, which the headers may take away.
fn request(args: &args::Request, matches: &ArgMatches, stdin_has_rows: bool) -> Result<(RequestDefaults, String)> {
    let (mut headers, mut user_agent) = (HeaderMap::new(), args.user_agent.clone());
    header("user-agent", &user_agent).map_err(|why| format!("--user-agent: {why}"))?;
    let mut body = body(args, matches, stdin_has_rows)?;
    let mut query = None;
    if args.get {
        let Payload::Bytes(bytes) = &body else { return Err("--get can't put so much into URLs".into()) };
        query = Some(String::from_utf8(bytes.to_vec()).map_err(|_| "--get can't put what isn't text into URLs")?);
        body = Payload::None;
    } else if !args.json.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    } else if body != Payload::None {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    }
    if let Some(referer) = &args.referer {
        headers.insert(REFERER, header("referer", referer).map_err(|why| format!("--referer: {why}"))?.1);
    }
    if !args.cookie.is_empty() {
        if args.cookie.iter().any(|cookie| !cookie.contains('=')) {
            return Err("--cookie takes name=value, not a file; --cookies keeps what servers set".into());
        }
        headers.insert(COOKIE, header("cookie", &args.cookie.join("; ")).map_err(|why| format!("--cookie: {why}"))?.1);
    }
    given_headers(args, stdin_has_rows, &mut headers, &mut user_agent)?;
    let method = match &args.request {
        Some(text) => method(text).map_err(|why| format!("--request: {why}"))?,
        None if args.head => Method::HEAD,
        None if body != Payload::None => Method::POST,
        None => Method::GET,
    };
    Ok((RequestDefaults { method, headers, query, body }, user_agent))
}

/// Those of `--header`, over those that follow from other flags.
fn given_headers(
    args: &args::Request,
    stdin_has_rows: bool,
    headers: &mut HeaderMap,
    user_agent: &mut String,
) -> Result<()> {
    let mut lines = Vec::new();
    for line in &args.header {
        match line.strip_prefix('@') {
            None => lines.push(line.clone()),
            Some(file) => {
                let text = String::from_utf8(read("--header", file, stdin_has_rows)?)
                    .map_err(|_| format!("--header {line} is not a file of text"))?;
                lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
            }
        }
    }
    let mut given = HeaderMap::new();
    for line in &lines {
        // Not the line itself: it may be a secret without its name.
        let wrong = |why: String| format!("--header: {why}");
        let Some((name, value)) = line.split_once(':') else {
            let Some(name) = line.trim_end().strip_suffix(';') else {
                return Err(wrong("give 'Name: value', 'Name;' for an empty one, or 'Name:' for none".into()));
            };
            given.append(header_name(name).map_err(wrong)?, HeaderValue::from_static(""));
            continue;
        };
        if !value.trim().is_empty() {
            let (name, value) = header(name, value).map_err(wrong)?;
            given.append(name, value);
            continue;
        }
        let name = header_name(name).map_err(wrong)?;
        match name {
            USER_AGENT => user_agent.clear(),
            ACCEPT_ENCODING => return Err(wrong(format!("{name} is left out by --no-compressed"))),
            HOST => return Err(wrong(format!("{name} can't be left out"))),
            ACCEPT if !headers.contains_key(ACCEPT) => {
                return Err(wrong(format!("{name} can't be left out; '{name};' sends it empty")));
            }
            _ => drop(headers.remove(name)),
        }
    }
    for name in given.keys() {
        headers.remove(name);
    }
    for (name, value) in &given {
        headers.append(name, value.clone());
    }
    Ok(())
}

/// How a part of a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// From a file without its line ends.
    Text,
    Raw,
    Binary,
    Encoded,
}

/// The parts as curl joins them.
fn body(args: &args::Request, matches: &ArgMatches, stdin_has_rows: bool) -> Result<Payload> {
    let content = |flag, text: &str| match text.strip_prefix('@') {
        None => Ok(text.as_bytes().to_vec()),
        Some(file) => read(flag, file, stdin_has_rows),
    };
    if !args.json.is_empty() {
        let parts = args.json.iter().map(|part| content("--json", part)).collect::<Result<Vec<_>>>()?;
        return Ok(Payload::Bytes(parts.concat().into()));
    }
    let parts = parts(args, matches);
    if let [(Part::Binary, whole)] = parts[..]
        && let Some(file) = whole.strip_prefix('@')
        && fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.len() > LARGE)
    {
        return Ok(Payload::File(file.into()));
    }
    let parts = parts.into_iter().map(|(part, text)| match part {
        Part::Text => {
            let mut bytes = content("--data", text)?;
            if text.starts_with('@') {
                bytes.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
            }
            Ok(bytes)
        }
        Part::Raw => Ok(text.as_bytes().to_vec()),
        Part::Binary => content("--data-binary", text),
        Part::Encoded => encoded(text, stdin_has_rows),
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    Ok(if parts.is_empty() { Payload::None } else { Payload::Bytes(Bytes::from(parts.join(&b'&'))) })
}

/// Those of all flags for parts, in the order in which they were given.
fn parts<'a>(args: &'a args::Request, matches: &ArgMatches) -> Vec<(Part, &'a str)> {
    let flags = [
        ("data", Part::Text, &args.data),
        ("data_raw", Part::Raw, &args.data_raw),
        ("data_binary", Part::Binary, &args.data_binary),
        ("data_urlencode", Part::Encoded, &args.data_urlencode),
    ];
    let mut parts = Vec::new();
    for (id, part, texts) in flags {
        let places = matches.indices_of(id).into_iter().flatten();
        parts.extend(places.zip(texts).map(|(place, text)| (place, (part, text.as_str()))));
    }
    parts.sort_by_key(|&(place, _)| place);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// A part of a form: `data`, `=data`, `name=data`, `@file` or `name@file`.
fn encoded(text: &str, stdin_has_rows: bool) -> Result<Vec<u8>> {
    const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let (name, data) = match (text.split_once('='), text.split_once('@')) {
        (Some((name, data)), _) => (name, data.as_bytes().to_vec()),
        (None, Some((name, file))) => (name, read("--data-urlencode", file, stdin_has_rows)?),
        (None, None) => ("", text.as_bytes().to_vec()),
    };
    let data = percent_encode(&data, &ESCAPED).to_string().replace("%20", "+");
    Ok(if name.is_empty() { data } else { format!("{name}={data}") }.into_bytes())
}

fn read(flag: &str, file: &str, stdin_has_rows: bool) -> Result<Vec<u8>> {
    let unreadable = |error: io::Error| format!("{flag} can't read {file}: {error}");
    if file != "-" {
        return fs::read(file).map_err(unreadable);
    }
    if stdin_has_rows {
        return Err(format!("{flag} @- would read standard input, which has the rows: give these with --from FILE"));
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn http(
    args: args::Http,
    time: args::Time,
    request: &args::Request,
    user_agent: String,
    demo: bool,
    around: &Surroundings<'_>,
) -> Result<HttpSettings> {
    let some = |time: Duration| (!time.is_zero()).then_some(time);
    let netrc = request.netrc_file.clone().or_else(|| {
        let home = || Some(Path::new(&around.variable("HOME")?).join(".netrc"));
        request.netrc.then(|| around.variable("NETRC").map(PathBuf::from).or_else(home)).flatten()
    });
    let resolve =
        args.resolve.iter().map(|text| values::resolve(text).map_err(|why| format!("--resolve {text}: {why}")));
    let resolve = resolve.collect::<Result<_>>()?;
    for (flag, file) in
        [("--cert", &args.cert), ("--key", &args.key), ("--if-changed", &args.if_changed), ("--netrc", &netrc)]
            .into_iter()
            .filter_map(|(flag, file)| Some((flag, file.as_ref()?)))
            .chain(args.cacert.iter().map(|file| ("--cacert", file)))
    {
        File::open(file).map_err(|error| format!("{flag} can't read {}: {error}", file.display()))?;
    }
    Ok(HttpSettings {
        version: match (args.http1, args.http2_prior_knowledge) {
            (true, _) => HttpVersion::Http1,
            (_, true) => HttpVersion::Http2PriorKnowledge,
            _ => HttpVersion::Any,
        },
        connect_timeout: time.connect_timeout,
        first_byte_timeout: some(time.first_byte_timeout),
        idle_timeout: some(time.idle_timeout),
        max_time: some(time.max_time),
        max_redirects: if args.location { args.max_redirs.into() } else { 0 },
        max_body: (args.max_filesize > 0).then_some(args.max_filesize),
        compressed: args.compressed,
        cookies: request.cookies,
        auth: auth(request)?,
        netrc,
        user_agent,
        proxy: if demo { Proxy::None } else { proxy(&args, around)? },
        ca_certificates: args.cacert,
        client_certificate: args.cert.map(|cert| (cert, args.key)),
        insecure: args.insecure,
        tls13: args.tls13,
        resolve,
        family: match (args.ipv4, args.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        },
        deny_private: args.deny_private,
        polite: args.polite,
        if_changed: args.if_changed,
    })
}

fn auth(args: &args::Request) -> Result<Auth> {
    match (&args.user, &args.oauth2_bearer) {
        (Some(user), _) => {
            let (user, password) = user_and_password("--user", user)?;
            Ok(Auth::Basic { user, password })
        }
        (None, Some(token)) => {
            header("authorization", token).map_err(|why| format!("--oauth2-bearer: {why}"))?;
            Ok(Auth::Bearer(token.clone()))
        }
        (None, None) => Ok(Auth::None),
    }
}

fn user_and_password(flag: &str, text: &str) -> Result<(String, String)> {
    let pair = text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()));
    pair.ok_or_else(|| format!("{flag} takes user:password; nobody is asked for the password"))
}

const PROXIES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

/// Whether the client can use a variable with this value. It reads them as these URIs.
fn is_proxy(value: &OsStr) -> bool {
    value.to_str().and_then(|value| value.parse::<hyper::Uri>().ok()).is_some_and(|uri| {
        uri.host().is_some_and(|host| !host.is_empty()) && uri.scheme_str().is_none_or(|name| PROXIES.contains(&name))
    })
}

/// The proxies that the client finds in the environment. It would pass over one that it can't use, and send everything
/// directly.
fn proxies(around: &Surroundings<'_>) -> Result<Proxy> {
    // As it looks for them: the first that is there counts, and an empty one is none.
    let first = |names: [&'static str; 2]| {
        let found = names.into_iter().find_map(|name| Some((name, (around.variable)(name)?)));
        found.filter(|(_, value)| !value.is_empty())
    };
    let nobody = first(["NO_PROXY", "no_proxy"]).is_some_and(|(_, hosts)| hosts.to_string_lossy().trim() == "*");
    if nobody || (around.variable)("REQUEST_METHOD").is_some() {
        return Ok(Proxy::None);
    }
    let used = |names| match first(names).or_else(|| first(["ALL_PROXY", "all_proxy"])) {
        None => Ok(None),
        Some((name, value)) => {
            let text = value.to_str().filter(|_| is_proxy(&value)).unwrap_or_default();
            let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
            Url::parse(&whole).map(Some).map_err(|_| {
                format!(
                    "the variable {name} is no proxy: it takes a URL such as http://host:3128 or \
                     socks5h://host:1080; empty, it is none, and --noproxy '*' does without any"
                )
            })
        }
    };
    Ok(Proxy::Environment { http: used(["HTTP_PROXY", "http_proxy"])?, https: used(["HTTPS_PROXY", "https_proxy"])? })
}

fn proxy(args: &args::Http, around: &Surroundings<'_>) -> Result<Proxy> {
    const VARIABLES: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    // A proxy looks names up itself, so that nobody here sees where a request goes.
    let hidden = |flag: &str| {
        format!("--deny-private can't see which addresses the proxy of {flag} connects to: add --noproxy '*'")
    };
    match (args.proxy.as_deref(), args.noproxy.as_deref()) {
        // The former as in curl.
        (Some(""), _) | (_, Some("*")) => Ok(Proxy::None),
        (None, Some(_)) => Err("--noproxy goes with --proxy URL; on its own only as --noproxy '*'".into()),
        (Some(_), _) if args.deny_private => Err(hidden("--proxy")),
        (None, None) if args.deny_private => match VARIABLES.iter().find(|name| around.variable(name).is_some()) {
            Some(name) => Err(hidden(name)),
            None => Ok(Proxy::None),
        },
        (None, None) => proxies(around),
        (Some(text), except) => {
            // Without the text, which may have a password in it.
            let wrong = || "--proxy takes a URL such as http://host:3128 or socks5h://host:1080".to_owned();
            let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
            let mut url = Url::parse(&whole).map_err(|_| wrong())?;
            if !url.has_host() || !PROXIES.contains(&url.scheme()) {
                return Err(wrong());
            }
            if let Some(user) = &args.proxy_user {
                let (user, password) = user_and_password("--proxy-user", user)?;
                url.set_username(&user).and_then(|()| url.set_password(Some(&password))).map_err(|()| wrong())?;
            }
            Ok(Proxy::At { url, except: except.unwrap_or_default().to_owned() })
        }
    }
}
