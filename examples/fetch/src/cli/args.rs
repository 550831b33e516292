//! The flags, in the groups in which `--help` shows them. Names are curl's where curl has one. How the parts fit
//! together is checked in `combine`; what isn't on the command line comes from `config`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueHint, value_parser};
use clap_complete::Shell;

use super::values;
use crate::extract::Rule;
use crate::settings::{Concurrency, Inline, InputFormat, Names};

/// Fetches URLs by the hundred thousand and prints one JSON object for each
///
/// Every URL gets exactly one object on a line of its own, whatever happens to it: {"id", "row", "url", "final_url",
/// "method", "status", "error": {"kind", "message"}, "bytes", "sha256", "content_type", "attempts", "seconds",
/// "ttfb_seconds", "file", "started_at"}, without those that don't apply. A progress bar and a summary go to standard
/// error.
#[derive(Debug, Parser)]
#[command(name = "fetch", version, max_term_width = 120, args_override_self = true)]
#[command(after_help = AFTER, after_long_help = AFTER_LONG)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    #[command(flatten)]
    pub(super) request: Request,
    #[command(flatten)]
    pub(super) limits: Limits,
    #[command(flatten)]
    pub(super) time: Time,
    #[command(flatten)]
    pub(super) retry: Retry,
    #[command(flatten)]
    pub(super) http: Http,
    #[command(flatten)]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) extract: Extract,
    #[command(flatten)]
    pub(super) report: Report,
}

/// Switches of curl that ask for what is done anyway.
const AS_IT_IS: [&str; 10] = [
    "basic",
    "create-dirs",
    "no-buffer",
    "parallel-immediate",
    "remove-on-error",
    "retry-connrefused",
    "show-error",
    "tcp-nodelay",
    "tlsv1",
    "tlsv1.2",
];

const AFTER: &str = "See --help for all of it, with examples.";

const AFTER_LONG: &str = "\
Examples:
  A list of URLs, bodies in a directory, records in a file; after an interruption, the same with --resume goes on:
    fetch --from urls.txt -o bodies --records records.jsonl

  Five hundred pages at ten a second, and what their headings say:
    fetch 'https://example.com/page/{1..500}' --rate 10/s --extract-css h1

  Requests of their own, one JSON object a line:
    echo '{\"url\": \"https://example.com/a\", \"method\": \"PUT\", \"body\": {\"file\": \"a\"}}' | fetch --format jsonl

  URLs that others gave, without a way into the own network:
    fetch --deny-private --max-filesize 10M --from links.csv --column href

  Gently, and only what has changed since the last time:
    fetch --polite --if-changed monday.jsonl --records tuesday.jsonl --from urls.txt

Every flag is also a variable: FETCH_RATE=10/s is --rate 10/s (lines of a variable are several values). Every flag may
stand in a config file (--config, or fetch/config.toml in the directory of configuration), as in rate = \"10/s\". The
command line goes before variables, and these before the file. Every switch can be taken back: --no-ordered.

Kinds of errors: bad-input, dns, connect, tls, connect-timeout, first-byte-timeout, idle-timeout, timeout, connection,
truncated, partial, protocol, redirect, too-large, status, denied, robots, output, extract, deadline, internal.

Exit codes: 0 all URLs succeeded; 1 some failed (see --fail-above), or have no record as the --deadline passed before
the input ended; 2 wrong usage; 130 interrupted. Ctrl-C lets what runs finish within --grace, a second one doesn't.";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub(super) struct Input {
    /// The URLs; without any and without --from, they are read from standard input
    ///
    /// {1..500}, {001..500}, {1..500..5}, {a..z} and {a,b,c} stand for as many URLs, as do [1-500] and [1-500:5] as in
    /// curl, here and in lists of URLs; the last one turns fastest. Anything else in braces or brackets stays as it is.
    pub(super) urls: Vec<String>,

    /// The same as a URL without the flag
    #[arg(long, value_name = "URL", hide = true)]
    pub(super) url: Vec<String>,

    /// Reads URLs from a file, or with - from standard input; may be repeated
    #[arg(long, value_name = "FILE", alias = "input-file", value_hint = ValueHint::FilePath)]
    pub(super) from: Vec<PathBuf>,

    /// How files are written
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) format: InputFormat,

    /// The column of a CSV or TSV file that has the URLs [default: url]
    ///
    /// Columns named id and method are used as well.
    #[arg(long, value_name = "NAME")]
    pub(super) column: Option<String>,

    /// Takes braces and brackets in URLs as they are
    #[arg(short, long)]
    pub(super) globoff: bool,

    /// Sends nothing if any row is bad; otherwise a bad row is an error of its own
    #[arg(long)]
    pub(super) strict: bool,

    /// Leaves out rows that have been there: method, URL, headers and body are the same
    ///
    /// What is behind # in a URL makes no difference. They get no number and no record; the summary counts them. Takes
    /// 10 to 20 bytes of memory a URL.
    #[arg(long)]
    pub(super) dedupe: bool,

    /// Starts a server on this machine and fetches from it
    ///
    /// /status/404 has that status, /bytes/1000 so many bytes, any other path a greeting, and ?sleep=50 takes so many
    /// milliseconds.
    #[arg(long)]
    pub(super) demo: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Request")]
pub(super) struct Request {
    /// The method [default: GET, or POST with a body]
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub(super) request: Option<String>,

    /// A header, or a file of them; may be repeated
    ///
    /// 'Name: value' sends it, 'Name;' sends it empty, 'Name:' leaves out what would be sent (but for Accept and Host).
    #[arg(short = 'H', long, value_name = "LINE|@FILE")]
    pub(super) header: Vec<String>,

    /// A body, as a form has it; several are joined by &
    #[arg(short, long, value_name = "DATA|@FILE", alias = "data-ascii")]
    pub(super) data: Vec<String>,

    /// The same where an @ stands for itself
    #[arg(long, value_name = "DATA")]
    pub(super) data_raw: Vec<String>,

    /// The same with the line ends of the file kept
    #[arg(long, value_name = "DATA|@FILE")]
    pub(super) data_binary: Vec<String>,

    /// The same, encoded for a form; a name in front of = or @ is taken as it is
    #[arg(long, value_name = "[NAME=]DATA|[NAME]@FILE")]
    pub(super) data_urlencode: Vec<String>,

    /// A body of JSON, with the headers that say so
    #[arg(long, value_name = "DATA|@FILE")]
    pub(super) json: Vec<String>,

    /// Puts --data into the URL instead
    #[arg(short = 'G', long)]
    pub(super) get: bool,

    /// Asks for the headers alone
    #[arg(short = 'I', long)]
    pub(super) head: bool,

    /// The name of the client; an empty one is not sent
    #[arg(short = 'A', long, value_name = "NAME", default_value = concat!("fetch/", env!("CARGO_PKG_VERSION")))]
    pub(super) user_agent: String,

    /// Where the URLs were found
    #[arg(short = 'e', long, value_name = "URL")]
    pub(super) referer: Option<String>,

    /// Cookies to send; may be repeated
    #[arg(short = 'b', long, value_name = "NAME=VALUE")]
    pub(super) cookie: Vec<String>,

    /// Keeps the cookies that servers set, for this run
    #[arg(long)]
    pub(super) cookies: bool,

    /// Who asks, by basic authentication
    ///
    /// Others on this machine can see a command line; FETCH_USER they can't.
    #[arg(short, long, value_name = "USER:PASSWORD")]
    pub(super) user: Option<String>,

    /// Who asks, by a token
    #[arg(long, value_name = "TOKEN")]
    pub(super) oauth2_bearer: Option<String>,

    /// Who asks, by host, from ~/.netrc
    #[arg(short, long, alias = "netrc-optional")]
    pub(super) netrc: bool,

    /// The same from another file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) netrc_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How much at once")]
pub(super) struct Limits {
    /// Requests at once; with auto as many as help, up to 512 or auto:MAX
    #[arg(short, long, value_name = "N|auto", alias = "parallel-max", default_value = "64")]
    #[arg(value_parser = values::concurrency)]
    pub(super) concurrency: Concurrency,

    /// Requests at once to one host [default: as --concurrency; with --polite 2]
    #[arg(long, value_name = "N", alias = "parallel-max-host", value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) per_host: Option<u32>,

    /// Requests started in a time: 10/s, 100/m, 3/15s; a bare number is a second
    #[arg(long, value_name = "N/TIME", value_parser = values::rate)]
    pub(super) rate: Option<Duration>,

    /// The same for each host
    #[arg(long, value_name = "N/TIME", value_parser = values::rate)]
    pub(super) rate_per_host: Option<Duration>,

    /// Requests that may start together after a pause, within a rate [default: those of 50 ms, at least 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(super) burst: Option<u32>,

    /// How long the whole run may take; what isn't done by then is an error
    #[arg(long, value_name = "TIME", value_parser = values::some_time)]
    pub(super) deadline: Option<Duration>,

    /// Rows read ahead, but for those beyond 8 MiB, to find hosts that have nothing to do
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(super) lookahead: u32,

    /// How long requests under way may take to finish after Ctrl-C
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    pub(super) grace: Duration,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Timeouts (in seconds, or as 500ms and 2m; 0 is none, except for connections)")]
pub(super) struct Time {
    /// Until there is a connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::some_time)]
    pub(super) connect_timeout: Duration,

    /// From the request to the head of the response
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    pub(super) first_byte_timeout: Duration,

    /// Without a byte of the body
    #[arg(long, value_name = "TIME", alias = "stall-timeout", default_value = "30s", value_parser = values::duration)]
    pub(super) idle_timeout: Duration,

    /// Of one attempt, from the connection to the end of the body
    #[arg(short, long, value_name = "TIME", alias = "timeout", default_value = "5m", value_parser = values::duration)]
    pub(super) max_time: Duration,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Retries")]
pub(super) struct Retry {
    /// Attempts after the first, where connection or server failed for the moment
    ///
    /// That is a lost connection, a timeout (but not that of --max-time), a body cut short, and the statuses 408, 425,
    /// 429 and 5xx but for 501 and 505.
    #[arg(long, value_name = "N", alias = "retries", default_value_t = 2)]
    #[arg(value_parser = value_parser!(u32).range(0..=1000))]
    pub(super) retry: u32,

    /// Before the second attempt; each next delay is twice as long
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = values::duration)]
    pub(super) retry_delay: Duration,

    /// The longest delay; a server that asks for more (Retry-After) is not asked again
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration)]
    pub(super) retry_max_delay: Duration,

    /// Also methods that may do something twice, such as POST
    #[arg(long)]
    pub(super) retry_unsafe: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "HTTP")]
pub(super) struct Http {
    /// Follows redirects: what happens unless --no-location is given
    #[arg(short = 'L', long, default_value_t = true)]
    pub(super) location: bool,

    /// Redirects that are followed; with 0, they are the responses
    #[arg(long, value_name = "N", alias = "max-redirect", default_value_t = 10)]
    #[arg(value_parser = value_parser!(u16).range(0..=1000))]
    pub(super) max_redirs: u16,

    /// The longest body, after decompression; 0 is any
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = values::size)]
    pub(super) max_filesize: u64,

    /// Speaks HTTP/1.1 only
    #[arg(long = "http1.1")]
    pub(super) http1: bool,

    /// Accepted for those who type it: HTTP/2 is used where the server offers it
    #[arg(long, hide = true)]
    pub(super) http2: bool,

    /// Speaks HTTP/2 without asking, also without TLS
    #[arg(long)]
    pub(super) http2_prior_knowledge: bool,

    /// Asks for gzip, brotli and zstd: what happens unless --no-compressed is given
    #[arg(long, default_value_t = true)]
    pub(super) compressed: bool,

    /// A proxy: http, https, socks4, socks5 or socks5h [default: those of http_proxy, https_proxy, all_proxy]
    #[arg(short = 'x', long, value_name = "URL")]
    pub(super) proxy: Option<String>,

    /// Hosts asked directly, with commas between; * is all
    #[arg(long, value_name = "HOSTS")]
    pub(super) noproxy: Option<String>,

    /// Who asks the proxy
    #[arg(short = 'U', long, value_name = "USER:PASSWORD")]
    pub(super) proxy_user: Option<String>,

    /// Connects to IPv4 addresses only
    #[arg(short = '4', long, overrides_with = "ipv6")]
    pub(super) ipv4: bool,

    /// Connects to IPv6 addresses only
    #[arg(short = '6', long, overrides_with = "ipv4")]
    pub(super) ipv6: bool,

    /// Speaks TLS 1.3 only, not 1.2
    #[arg(long = "tlsv1.3")]
    pub(super) tls13: bool,

    /// Trusts the certificates in a PEM file as well; may be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) cacert: Vec<PathBuf>,

    /// The own certificate, PEM
    #[arg(short = 'E', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) cert: Option<PathBuf>,

    /// Its key, if it isn't in the same file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) key: Option<PathBuf>,

    /// Doesn't look at certificates: anybody may answer
    #[arg(short = 'k', long)]
    pub(super) insecure: bool,

    /// The addresses of a host, instead of asking DNS; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDRESS[,ADDRESS]")]
    pub(super) resolve: Vec<String>,

    /// Refuses private, local and link-local addresses, after DNS and after each redirect
    ///
    /// For URLs that others gave. Nor are files of this machine sent as bodies of rows then.
    #[arg(long)]
    pub(super) deny_private: bool,

    /// Asks each host's robots.txt first and keeps to it
    #[arg(long)]
    pub(super) polite: bool,

    /// Records of an earlier run: what hasn't changed since has status 304 and no body
    #[arg(long, value_name = "RECORDS", value_hint = ValueHint::FilePath)]
    pub(super) if_changed: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Output {
    /// Keeps the bodies in a directory
    #[arg(short, long, value_name = "DIR", alias = "output", value_hint = ValueHint::DirPath)]
    pub(super) output_dir: Option<PathBuf>,

    /// How the files there are called
    #[arg(long, value_enum, default_value = "path")]
    pub(super) names: Names,

    /// Writes the records to a file instead of standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) records: Option<PathBuf>,

    /// Goes on where the run that wrote --records was stopped
    #[arg(long)]
    pub(super) resume: bool,

    /// With --resume, also does again what failed, which otherwise counts as before
    #[arg(long)]
    pub(super) retry_failed: bool,

    /// Writes the records in the order of the input
    #[arg(long)]
    pub(super) ordered: bool,

    /// Puts the bodies into the records
    #[arg(long, value_enum, value_name = "HOW")]
    pub(super) body: Option<Inline>,

    /// Keeps requests and responses as a web archive
    #[arg(long, value_name = "FILE.warc.gz", value_hint = ValueHint::FilePath)]
    pub(super) warc: Option<PathBuf>,

    /// Keeps the bodies of responses with status 400 and above as well
    #[arg(long, alias = "fail-with-body")]
    pub(super) keep_errors: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Extraction (in processes of its own)")]
pub(super) struct Extract {
    /// Puts each match of a regular expression, or of its first group, into the record
    ///
    /// Pages are read in the character set that the server, or a meta element, names.
    #[arg(long, value_name = "REGEX", value_parser = values::regex)]
    pub(super) extract_regex: Option<Rule>,

    /// Puts the text of each element that a CSS selector finds into the record, or an attribute: a.next@href
    #[arg(long, value_name = "SELECTOR[@ATTRIBUTE]", value_parser = values::css)]
    pub(super) extract_css: Option<Rule>,

    /// For one page
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::some_time)]
    pub(super) extract_timeout: Duration,

    /// Processes [default: one a processor]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(super) extract_workers: Option<u16>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Report and settings")]
pub(super) struct Report {
    /// No progress and no summary
    #[arg(short, long, short_alias = 's', alias = "silent")]
    pub(super) quiet: bool,

    /// Writes the summary to a file as JSON; - is standard output, if the records are in a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) summary_json: Option<PathBuf>,

    /// The share of URLs that may fail without exit code 1, as in 5%; those done before count with --resume
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = values::share)]
    pub(super) fail_above: f64,

    /// A config file; /dev/null is none
    #[arg(short = 'K', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,

    /// Prints completions for a shell
    #[arg(long, value_enum, value_name = "SHELL")]
    pub(super) completions: Option<Shell>,

    /// Prints the manual page
    #[arg(long, action = ArgAction::SetTrue)]
    pub(super) man: bool,

    /// Accepted for those who type them: that is how it is anyway
    #[arg(short = 'f', long, short_aliases = ['S', 'N'], aliases = AS_IT_IS, hide = true)]
    pub(super) fail: bool,

    /// As above
    #[arg(short = 'Z', long, hide = true)]
    pub(super) parallel: bool,
}
