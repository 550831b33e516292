//! The command line: what it refuses, what it says about itself, where values come from, and what a request looks like
//! that was asked for in the words of curl.

mod common;

use std::fs;
use std::path::Path;

use common::{Asked, Run, Server, program, run, run_with};

/// Wrong usage: code 2, nothing on standard output, and what would help on standard error.
#[track_caller]
fn assert_refused(run: &Run, words: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is missing in {}", run.stderr);
    }
    assert!(!run.stderr.contains("secret"), "{}", run.stderr);
}

/// The one request that a command line leads to.
#[track_caller]
fn asked(arguments: &[&str]) -> Asked {
    let server = Server::echo();
    let url = server.url("/");
    let run = run(arguments.iter().copied().chain([url.as_str()]));
    assert_eq!(run.code, Some(0), "{run:?}");
    let mut asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    asked.remove(0)
}

#[test]
fn wrong_usage_names_the_flag_and_what_would_be_right() {
    for (arguments, words) in [
        (&["--concurrency", "0"][..], &["--concurrency", "1 to 100000"][..]),
        (&["-c", "jar.txt"], &["--concurrency", "--cookies"]),
        (&["--rate", "fast"], &["--rate", "10/s"]),
        (&["--max-time", "NaN"], &["--max-time", "500ms"]),
        (&["--connect-timeout", "0"], &["--connect-timeout", "above 0"]),
        (&["--deadline", "soon"], &["--deadline"]),
        (&["--retry=-1"], &["--retry"]),
        (&["--max-filesize", "much"], &["--max-filesize", "10M"]),
        (&["--fail-above", "101%"], &["--fail-above", "5%"]),
        (&["--format", "xml"], &["--format", "jsonl"]),
        (&["--resolve", "a:b"], &["--resolve", "host:port:address"]),
        (&["--extract-regex", "("], &["--extract-regex"]),
        (&["--extract-css", "a["], &["--extract-css", "a.next@href"]),
        (&["--extract-css", "a", "--extract-regex", "a"], &["--extract-regex", "--extract-css"]),
        (&["--http1.1", "--http2-prior-knowledge"], &["--http1.1", "--http2-prior-knowledge"]),
        (&["--resume"], &["--resume", "--records FILE"]),
        (&["--resume", "--records", "-"], &["--records FILE"]),
        (&["--if-changed", "a", "--records", "a"], &["--if-changed", "--records"]),
        (&["--deny-private", "--proxy", "http://a:secret@b/"], &["--deny-private", "--proxy", "--noproxy '*'"]),
        (&["--deny-private", "--demo"], &["--deny-private", "--demo"]),
        (&["--proxy", "gopher://a:secret@b/"], &["--proxy", "socks5h"]),
        (&["--proxy-user", "a:secret"], &["--proxy-user", "--proxy URL"]),
        (&["--user", "secret"], &["--user", "user:password"]),
        (&["--user", "a:secret", "--oauth2-bearer", "secret"], &["--user", "--oauth2-bearer"]),
        (&["--oauth2-bearer", "secret\n"], &[]),
        (&["--oauth2-bearer", "sec\nret"], &["--oauth2-bearer", "line break"]),
        (&["-H", "Authorization: sec\r\nret"], &["--header", "authorization", "line break"]),
        (&["-H", "secret"], &["--header", "'Name: value'"]),
        (&["-H", "Content-Length: 3"], &["--header", "content-length"]),
        (&["-b", "secret.txt"], &["--cookie", "--cookies"]),
        (&["-X", "G T"], &["--request", "GET"]),
        (&["-I", "-d", "x"], &["--head", "--data"]),
        (&["-d", "x", "--json", "{}"], &["--json", "--data"]),
        (&["-d", "@no/such"], &["--data", "no/such"]),
        (&["-G"], &["--get", "--data"]),
        (&["--cert", "no/such"], &["--cert", "no/such"]),
        (&["--key", "no/such"], &["--key", "--cert"]),
        (&["--cacert", "no/such"], &["--cacert", "no/such"]),
        (&["--netrc-file", "no/such"], &["--netrc", "no/such"]),
        (&["--if-changed", "README.md"], &["--if-changed", "README.md", "--records"]),
        (&["--config", "no/such"], &["--config", "no/such"]),
        (&["--from", "no/such"], &["--from", "no/such"]),
        (&["--from", "."], &["--from", "directory"]),
        (&["--from", "-", "--from", "-"], &["--from", "only once"]),
        (&["--from", "-", "-d", "@-"], &["--data", "--from FILE"]),
        (&["--summary-json", "."], &["--summary-json", "directory"]),
        (&["--summary-json", "no/such"], &["--summary-json", "no/such"]),
        (&["--summary-json", "-"], &["--summary-json", "--records FILE"]),
        (&["--column", "x"], &["--column", "--format csv"]),
        (&["--names", "hash"], &["--names", "--output-dir"]),
        (&["--burst", "3"], &["--burst", "--rate"]),
        (&["--concurency", "3"], &["--concurrency"]),
        (&["-O"], &["-o DIR"]),
        (&["-w", "%{http_code}"], &["every record"]),
        (&["--limit-rate", "1M"], &["--rate"]),
        (&["-sSi"], &["--warc FILE"]),
        (&["-j"], &["--cookies"]),
        (&["--retry-all-errors"], &["--resume --retry-failed"]),
        (&["--no-progress-meter"], &["--quiet"]),
        (&["--no-keepalive"], &["connections"]),
        (&["--capath", "/etc/ssl"], &["--cacert FILE"]),
        (&["--connect-to", "a:1:b:2"], &["--resolve HOST:PORT:ADDRESS"]),
        (&["--tlsv1.1"], &["TLS 1.2"]),
        (&["--http1.0"], &["--http1.1"]),
        (&["--socks5", "a:1"], &["--proxy", "socks5://HOST:PORT"]),
        (&["--digest"], &["--user"]),
        (&["--next"], &["--format jsonl"]),
        (&["--json", "{}", "--data-raw", "x"], &["--json", "--data"]),
        (&["--json", "{}", "--data-urlencode", "x"], &["--json", "--data"]),
        (&["--data-urlencode", "a@no/such"], &["--data-urlencode", "no/such"]),
    ] {
        let arguments = arguments.iter().chain(&["http://127.0.0.1:1/"]);
        let run = run(arguments.clone());
        if words.is_empty() {
            continue; // Taken as it is meant.
        }
        assert_refused(&run, words);
    }
}

#[test]
fn what_may_be_a_password_is_not_shown_where_netrc_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let netrc = directory.path().join("netrc");
    fs::write(&netrc, "machine a login b\nsecret\n").unwrap();
    let path = netrc.to_str().unwrap();
    assert_refused(&run(["--netrc-file", path, "http://127.0.0.1:1/"]), &["--netrc-file", path, "line 3"]);
}

#[test]
fn a_proxy_of_the_environment_is_not_looked_behind() {
    let run = run_with(program().args(["--deny-private", "http://a/"]).env("https_proxy", "http://secret@b/"), b"");
    assert_refused(&run, &["--deny-private", "https_proxy", "--noproxy '*'"]);
}

#[test]
fn a_proxy_of_the_environment_is_not_passed_over() {
    let server = Server::echo();
    let url = server.url("/");
    for name in ["http_proxy", "HTTPS_PROXY", "all_proxy"] {
        for value in ["ftp://a:secret@127.0.0.1:9", ":::", "http://", "http://secret b/"] {
            assert_refused(&run_with(program().arg(&url).env(name, value), b""), &[name, "--noproxy '*'"]);
        }
        assert_eq!(server.connections(), 0);
    }
    for (name, value) in [("http_proxy", ""), ("https_proxy", "host:3128"), ("https_proxy", "socks5h://u:p@h:1")] {
        assert_eq!(run_with(program().args(["--quiet", &url]).env(name, value), b"").code, Some(0), "{name} {value}");
    }
    // What would not be used is of no interest.
    let good = [("http_proxy", server.url("/")), ("https_proxy", server.url("/"))];
    for (wrong, others) in [("all_proxy", &good[..]), ("http_proxy", &[("NO_PROXY", "*".to_owned())])] {
        let mut command = program();
        command.args(["--quiet", &url]).env(wrong, "socks://127.0.0.1:9/").envs(others.iter().cloned());
        let run = run_with(&mut command, b"");
        assert_eq!(run.code, Some(0), "{run:?}");
    }
}

#[test]
fn help_has_groups_examples_and_every_kind_of_error() {
    let help = run(["--help"]);
    assert_eq!(help.code, Some(0));
    for words in [
        "Input:",
        "Request:",
        "How much at once:",
        "Timeouts",
        "Retries:",
        "HTTP:",
        "Output:",
        "Extraction",
        "Report and settings:",
        "Examples:",
        "Exit codes:",
        "--no-location",
        "FETCH_RATE",
        "internal",
    ] {
        assert!(help.stdout.contains(words), "{words}: {}", help.stdout);
    }
    assert!(help.stdout.lines().all(|line| line.chars().count() <= 120), "{}", help.stdout);
    let short = run(["-h"]);
    assert!(short.code == Some(0) && short.stdout.len() < help.stdout.len());
    // They must come even when something else is wrong.
    let help = run_with(program().arg("--help").env("FETCH_RATE", "nonsense").env("FETCH_CONFIG", "no/such"), b"");
    assert_eq!(help.code, Some(0));
    assert!(run(["--version"]).stdout.starts_with("fetch "));
}

#[test]
fn there_are_completions_and_a_manual_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = run(["--completions", shell]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(run.stdout.contains("max-filesize"), "{shell}: {}", run.stdout);
    }
    let man = run(["--man"]);
    assert_eq!(man.code, Some(0));
    assert!(man.stdout.contains(".TH fetch") && man.stdout.contains("max\\-filesize"), "{}", man.stdout);
}

#[test]
fn values_come_from_the_command_line_then_variables_then_the_config_file() {
    let server = Server::echo();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("fetch");
    fs::create_dir(&home).unwrap();
    fs::write(
        home.join("config.toml"),
        "user-agent = \"file\"\nreferer = \"file\"\nheader = [\"x: file\"]\nquiet = true\n",
    )
    .unwrap();
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = program();
        command.env("XDG_CONFIG_HOME", directory.path()).envs(variables.iter().copied());
        run_with(command.args(arguments).arg(server.url("/")), b"")
    };
    for (variables, arguments) in [
        (&[][..], &[][..]),
        (&[("FETCH_USER_AGENT", "variable")], &[]),
        (&[("FETCH_USER_AGENT", "variable")], &["-A", "typed"]),
    ] {
        let run = run(variables, arguments);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "quiet by the file");
    }
    let asked = server.asked();
    let agents: Vec<_> = asked.iter().map(|asked| asked.header("user-agent").unwrap()).collect();
    assert_eq!(agents, ["file", "variable", "typed"]);
    assert!(asked.iter().all(|asked| asked.header("referer") == Some("file") && asked.header("x") == Some("file")));

    fs::write(home.join("config.toml"), "user = \"a:secret\"\nconcurency = 3\n").unwrap();
    assert_refused(&run(&[], &[]), &["config.toml", "\"concurency\"", "\"concurrency\""]);
    assert_eq!(run(&[], &["--config", "/dev/null"]).code, Some(0));
    assert_refused(&run(&[("FETCH_CONFIG", "/dev/null"), ("FETCH_RATE", "fast")], &[]), &["FETCH_RATE", "10/s"]);
}

#[test]
fn requests_are_what_curl_would_send() {
    let plain = asked(&[]);
    assert_eq!((plain.method.as_str(), plain.path.as_str(), plain.body.as_slice()), ("GET", "/", &b""[..]));
    assert!(plain.header("user-agent").unwrap().starts_with("fetch/"));

    let form = asked(&["-d", "a=1", "-d", "b=2"]);
    assert_eq!((form.method.as_str(), form.body.as_slice()), ("POST", &b"a=1&b=2"[..]));
    assert_eq!(form.header("content-type"), Some("application/x-www-form-urlencoded"));

    let json = asked(&["--json", "{\"a\":1}", "-X", "put"]);
    assert_eq!((json.method.as_str(), json.body.as_slice()), ("PUT", &b"{\"a\":1}"[..]));
    assert_eq!(
        (json.header("content-type"), json.header("accept")),
        (Some("application/json"), Some("application/json"))
    );

    let parts = ["-d", "1", "--data-raw", "@2", "-d", "3", "--data-binary", "4", "--data-urlencode", "5 ", "-d", "6"];
    let parts = asked(&parts);
    assert_eq!((parts.method.as_str(), parts.body.as_slice()), ("POST", &b"1&@2&3&4&5+&6"[..]));
    for (text, encoded) in [
        ("a b&c", "a+b%26c"),
        ("a b&c=d e", "a b&c=d+e"),
        ("=a@b~-._'()", "a%40b~-._%27%28%29"),
        ("n=\u{fc}+", "n=%C3%BC%2B"),
        ("n=", "n="),
        ("", ""),
    ] {
        let form = asked(&["--data-urlencode", text]);
        assert_eq!(String::from_utf8_lossy(&form.body), encoded, "{text}");
        assert_eq!(form.header("content-type"), Some("application/x-www-form-urlencoded"));
    }
    assert_eq!(asked(&["-G", "--data-urlencode", "n=a b", "-d", "c"]).path, "/?n=a+b&c");
    assert_eq!(asked(&["--data-raw", "a\r\nb"]).body, b"a\r\nb");

    let query = asked(&["-G", "-d", "a=1", "-d", "b=2"]);
    assert_eq!((query.method.as_str(), query.path.as_str()), ("GET", "/?a=1&b=2"));

    assert_eq!(asked(&["-I"]).method, "HEAD");
    assert_eq!(asked(&["-u", "a:b"]).header("authorization"), Some("Basic YTpi"));
    assert_eq!(asked(&["--oauth2-bearer", "t"]).header("authorization"), Some("Bearer t"));
    assert_eq!(asked(&["-b", "a=1", "-b", "b=2"]).header("cookie"), Some("a=1; b=2"));
    assert_eq!(asked(&["-e", "http://r/"]).header("referer"), Some("http://r/"));
    assert_eq!(asked(&["-A", "me"]).header("user-agent"), Some("me"));
    assert_eq!(asked(&["-H", "User-Agent:"]).header("user-agent"), None);

    let headers = asked(&["-H", "X-A: 1", "-H", "x-a: 2", "-H", "X-B;", "-d", "x", "-H", "Content-Type:"]);
    let values: Vec<_> =
        headers.headers.iter().filter(|(name, _)| name == "x-a").map(|(_, value)| value.as_str()).collect();
    assert_eq!((values, headers.header("x-b"), headers.header("content-type")), (vec!["1", "2"], Some(""), None));

    let file = tempfile::NamedTempFile::new().unwrap();
    let at = |path: &Path| format!("@{}", path.display());
    fs::write(file.path(), "a\r\nb\n").unwrap();
    assert_eq!(asked(&["-d", &at(file.path())]).body, b"ab");
    assert_eq!(asked(&["--data-binary", &at(file.path())]).body, b"a\r\nb\n");
    assert_eq!(asked(&["--data-urlencode", &format!("n{}", at(file.path()))]).body, b"n=a%0D%0Ab%0A");
    fs::write(file.path(), "X-C: 1\r\n\nX-D: 2\n").unwrap();
    let headers = asked(&["-H", &at(file.path())]);
    assert_eq!((headers.header("x-c"), headers.header("x-d")), (Some("1"), Some("2")));
    // One that is not kept in memory.
    let large = vec![b'x'; 3 << 20];
    fs::write(file.path(), &large).unwrap();
    assert!(asked(&["--data-binary", &at(file.path())]).body == large);
}

#[test]
fn flags_that_curl_has_and_that_change_nothing_are_accepted() {
    let arguments = [
        "-f",
        "-sSN",
        "-L",
        "-Z",
        "--compressed",
        "--http2",
        "--fail",
        "--tlsv1.2",
        "--create-dirs",
        "--retry-connrefused",
    ];
    let run = run(arguments.iter().copied().chain([Server::echo().url("/").as_str()]));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[test]
fn addresses_may_be_of_one_family_only() {
    let server = Server::echo();
    let (url, resolve) = (format!("http://both.test:{}/", server.address.port()), |addresses: &str| {
        format!("both.test:{}:{addresses}", server.address.port())
    });
    for (flag, addresses, code) in [
        ("-4", "[::1],127.0.0.1", 0),
        ("--ipv4", "127.0.0.1,[::1]", 0),
        ("-6", "127.0.0.1", 1),
        ("--ipv6", "[::1]", 1), // where nobody listens
    ] {
        let run = run(["--quiet", "--retry", "0", flag, "--resolve", &resolve(addresses), &url]);
        assert_eq!(run.code, Some(code), "{flag} {addresses}: {run:?}");
        if code != 0 {
            assert_eq!(run.kind(&url), "connect");
            assert!(run.message(&url).ends_with("(with --ipv6)"), "{run:?}");
        }
    }
    // The last one counts.
    assert_eq!(run(["--quiet", "-6", "-4", &server.url("/")]).code, Some(0));
    assert_eq!(run(["--quiet", "--retry", "0", "-4", "-6", &server.url("/")]).code, Some(1));
}

#[test]
fn insecure_is_said_loudly_even_when_quiet() {
    let run = run(["--insecure", "--quiet", &Server::echo().url("/")]);
    assert!(run.stderr.contains("warning: --insecure"), "{}", run.stderr);
}

#[test]
fn nothing_to_do_is_done() {
    let run = run_with(&mut program(), b"");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{}", run.stderr);
}
