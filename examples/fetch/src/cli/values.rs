//! How values are written: durations, sizes, rates, shares and the like. Each function takes a text and says what would
//! be right, without the text itself: clap repeats it, and leaves out nothing that is a secret.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytesize::ByteSize;
use reqwest::Url;

use crate::extract::Rule;
use crate::settings::Concurrency;

/// Longer than any run, and short enough to be added to any instant.
const FOREVER: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// As in curl a bare number is in seconds; otherwise `500ms`, `2m` or `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let otherwise = || "give seconds, as in 2.5, or a duration such as 500ms, 2m or 1h30m".to_owned();
    let duration = match text.trim().parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| otherwise())?,
        Err(_) => humantime::parse_duration(text.trim()).map_err(|_| otherwise())?,
    };
    if duration > FOREVER { Err("that is more than ten years".into()) } else { Ok(duration) }
}

/// A duration above zero.
pub(crate) fn some_time(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("give a duration above 0".into()) } else { Ok(duration) }
}

/// Bytes. As in curl, `10k` is 10 × 1024; `10kB` and `10KiB` mean what they say.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let otherwise = || "give a number of bytes, as in 500000, 10M or 1.5GiB".to_owned();
    let text = text.trim();
    let binary =
        if text.ends_with(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']) { format!("{text}iB") } else { text.into() };
    binary.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| otherwise())
}

/// The interval between two requests: `10/s`, `100/m`, `3/15s`, or `10`, which is a second.
pub(crate) fn rate(text: &str) -> Result<Duration, String> {
    let otherwise = || "give requests and a time, as in 10/s, 100/m, 5000/h or 3/15s".to_owned();
    let (count, time) = text.trim().split_once('/').unwrap_or((text.trim(), "s"));
    let time = match time.trim() {
        "" => Err(String::new()),
        time if time.starts_with(|c: char| c.is_ascii_digit()) => duration(time),
        unit => duration(&format!("1{unit}")),
    };
    let (count, time) = (count.trim().parse::<f64>().map_err(|_| otherwise())?, time.map_err(|_| otherwise())?);
    let interval = Duration::try_from_secs_f64(time.as_secs_f64() / count).map_err(|_| otherwise())?;
    if interval.is_zero() || interval > FOREVER {
        return Err("that is more than 10^9 a second or less than one in ten years".into());
    }
    Ok(interval)
}

/// `64`, `auto` or `auto:256`.
pub(crate) fn concurrency(text: &str) -> Result<Concurrency, String> {
    const MOST: usize = 100_000;
    let number = |text: &str| match text.parse() {
        Ok(number) if (1..=MOST).contains(&number) => Ok(number),
        _ => Err(format!(
            "give a number from 1 to {MOST}, or auto, or auto:256 (curl's -c, a file of cookies, is --cookies here)"
        )),
    };
    match text.strip_prefix("auto") {
        Some("") => Ok(Concurrency::Auto { most: 512 }),
        Some(most) => number(most.strip_prefix(':').unwrap_or_default()).map(|most| Concurrency::Auto { most }),
        None => number(text).map(Concurrency::Fixed),
    }
}

/// A share from 0 to 1: `5%` or `0.05`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let (number, whole) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |number| (number, 100.0));
    match number.parse::<f64>() {
        Ok(number) if (0.0..=whole).contains(&number) => Ok(number / whole),
        _ => Err("give a share, as in 5% or 0.05".into()),
    }
}

/// `host:port:address[,address]…`, IPv6 addresses with or without brackets.
pub(crate) fn resolve(text: &str) -> Result<(String, u16, Vec<SocketAddr>), String> {
    let otherwise = || "give host:port:address, as in example.com:443:127.0.0.1,[::1]".to_owned();
    let (host, rest) = text.strip_prefix('+').unwrap_or(text).split_once(':').ok_or_else(otherwise)?;
    let (port, addresses) = rest.split_once(':').ok_or_else(otherwise)?;
    let port = port.parse().map_err(|_| otherwise())?;
    let address = |text: &str| {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        Ok(SocketAddr::new(bare.parse::<IpAddr>().map_err(|_| otherwise())?, port))
    };
    let addresses = addresses.split(',').map(address).collect::<Result<_, String>>()?;
    if host.is_empty() || port == 0 {
        return Err(otherwise());
    }
    // As the hosts of URLs are written.
    let whole = Url::parse(&format!("http://{host}/")).map_err(|_| otherwise())?;
    let is_host =
        whole.path() == "/" && whole.query().is_none() && whole.fragment().is_none() && whole.username().is_empty();
    match whole.domain() {
        Some(host) if is_host && !host.contains('*') => Ok((host.to_owned(), port, addresses)),
        _ => Err("it is for one name and port: neither * nor an address can stand for the host".to_owned()),
    }
}

/// A regular expression that compiles.
pub(crate) fn regex(text: &str) -> Result<Rule, String> {
    let rule = Rule::Regex(text.to_owned());
    rule.check().map(|()| rule)
}

/// A CSS selector that parses, with an attribute behind the last `@` if that is a name: `a.next@href`.
pub(crate) fn css(text: &str) -> Result<Rule, String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ':' | '.'))
    };
    let (selector, attribute) = match text.rsplit_once('@') {
        Some((selector, name)) if is_name(name) => (selector, Some(name.to_owned())),
        _ => (text, None),
    };
    let rule = Rule::Css { selector: selector.to_owned(), attribute };
    rule.check().map_err(|why| format!("{why}; give a selector such as h1, or a.next@href for an attribute"))?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, expected) in
            [("2", ms(2_000)), ("0.25", ms(250)), ("500ms", ms(500)), ("1.5s", ms(1_500)), ("0", ms(0))]
        {
            assert_eq!(duration(text).unwrap(), expected, "{text}");
        }
        assert_eq!(duration("1h 30m").unwrap(), ms(5_400_000));
        for bad in ["", "soon", "-1", "NaN", "inf", "1e300", "5 parsecs", "11years", "1e10"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(some_time("0").is_err() && some_time("0s").is_err());
    }

    #[test]
    fn sizes() {
        for (text, expected) in
            [("0", 0), ("1000", 1_000), ("10k", 10_240), ("1M", 1 << 20), ("1MB", 1_000_000), ("1.5 GiB", 3 << 29)]
        {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for bad in ["", "-1", "x", "1Q", "NaN"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("10/s", ms(100)),
            ("100/m", ms(600)),
            ("4", ms(250)),
            ("0.5/s", ms(2_000)),
            ("3/15s", ms(5_000)),
            ("3600/h", ms(1_000)),
            ("1/500ms", ms(500)),
        ] {
            assert_eq!(rate(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "0", "0/s", "-1/s", "10/", "10/parsec", "NaN", "1e300", "1e-300", "1/0s", "inf"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_requests_at_once() {
        assert_eq!(concurrency("64"), Ok(Concurrency::Fixed(64)));
        assert_eq!(concurrency("auto"), Ok(Concurrency::Auto { most: 512 }));
        assert_eq!(concurrency("auto:9"), Ok(Concurrency::Auto { most: 9 }));
        for bad in ["", "0", "-1", "auto:", "auto:0", "auto9", "100001", "jar.txt"] {
            assert!(concurrency(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!((share("5%"), share("0.25"), share("100%"), share("1")), (Ok(0.05), Ok(0.25), Ok(1.0), Ok(1.0)));
        for bad in ["", "5", "101%", "-1%", "NaN", "NaN%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_hosts() {
        let (host, port, addresses) = resolve("Example.com:443:127.0.0.1,[::1],::2").unwrap();
        assert_eq!((host.as_str(), port), ("example.com", 443));
        assert_eq!(
            addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
            ["127.0.0.1:443", "[::1]:443", "[::2]:443"]
        );
        assert_eq!(resolve("bücher.example:80:::1").unwrap().0, "xn--bcher-kva.example");
        for bad in [
            "a/b:80:127.0.0.1",
            "a?b:80:127.0.0.1",
            "u@a:80:127.0.0.1",
            "*:80:127.0.0.1",
            "127.0.0.1:80:127.0.0.2",
            "127.1:80:127.0.0.2",
        ] {
            assert!(resolve(bad).unwrap_err().contains("one name and port"), "{bad}");
        }
        for bad in
            ["", "a", "a:1", "a:1:", "a:x:127.0.0.1", "a:70000:127.0.0.1", "a:0:127.0.0.1", ":1:127.0.0.1", "a:1:b"]
        {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_of_extraction_are_compiled_at_once() {
        let css_rule = |selector: &str, attribute: Option<&str>| {
            Ok(Rule::Css { selector: selector.into(), attribute: attribute.map(str::to_owned) })
        };
        assert_eq!(css("a.next@href"), css_rule("a.next", Some("href")));
        assert_eq!(css("h1"), css_rule("h1", None));
        assert_eq!(css(r#"a[href*="@x"]"#), css_rule(r#"a[href*="@x"]"#, None));
        assert!(css("a[").is_err() && css("").is_err() && css("@href").is_err());
        assert_eq!(regex("a(b)"), Ok(Rule::Regex("a(b)".into())));
        assert!(regex("a(b").is_err());
    }
}
