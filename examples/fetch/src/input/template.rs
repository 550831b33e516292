//! URLs that stand for several: `/page/{1..500}`, `{001..500}`, `{1..500..5}`, `{a..f}`, `{a,b,c}`, and as curl writes
//! them `[1-500]`, `[001-500]`, `[1-500:5]`, `[a-f]`.
//!
//! The last one in a URL turns fastest. None of the URLs exists before it is asked for, so a range may be as long as it
//! likes. Braces and brackets that hold anything else, or another brace, or are never closed, stay as they are: `[::1]`
//! is an address, `{}` is two characters.

use std::fmt::Write;

/// Digits of a number with zeros in front; every URL gets as many.
const LONGEST_NUMBER: usize = 64;

/// A URL with at least one placeholder.
#[derive(Debug)]
pub(super) struct Template {
    /// Each a text and what follows it.
    parts: Vec<(String, Choice)>,
    rest: String,
    count: u64,
    next: u64,
}

/// The values of one placeholder.
#[derive(Debug)]
enum Choice {
    Numbers {
        first: u64,
        last: u64,
        step: u64,
        /// Digits, with zeros in front; 0 if they are as long as they are.
        width: usize,
    },
    Letters {
        first: u8,
        last: u8,
        step: u64,
    },
    Words(Vec<String>),
}

impl Template {
    /// `None` if the URL stands for itself alone.
    ///
    /// # Errors
    ///
    /// A range that can't be counted.
    pub(super) fn parse(url: &str) -> Result<Option<Self>, String> {
        let (mut parts, mut text, mut count, mut rest) = (Vec::new(), String::new(), 1_u64, url);
        while let Some(at) = rest.find(['{', '[']) {
            let close = if rest.as_bytes()[at] == b'{' { '}' } else { ']' };
            let inside = &rest[at + 1..];
            let end = inside.find(['{', '[', '}', ']']).filter(|&end| inside[end..].starts_with(close));
            let choice = match end {
                Some(end) => Choice::parse(&inside[..end], close)?,
                None => None,
            };
            match (choice, end) {
                (Some(choice), Some(end)) => {
                    let more = choice.len().and_then(|len| count.checked_mul(len));
                    count = more.ok_or("the template stands for more than 2^64 URLs")?;
                    text.push_str(&rest[..at]);
                    parts.push((std::mem::take(&mut text), choice));
                    rest = &inside[end + 1..];
                }
                // Not one of ours: the bracket is a character like any other.
                _ => {
                    text.push_str(&rest[..=at]);
                    rest = inside;
                }
            }
        }
        text.push_str(rest);
        Ok((!parts.is_empty()).then_some(Template { parts, rest: text, count, next: 0 }))
    }

    /// How many URLs it stands for, those that have been asked for included.
    pub(super) fn total(&self) -> u64 {
        self.count
    }
}

impl Iterator for Template {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.next == self.count {
            return None;
        }
        // The place value of each placeholder: those behind it have turned fully once for each of its steps.
        let (mut index, mut behind) = (self.next, self.count);
        self.next += 1;
        let mut url = String::new();
        for (text, choice) in &self.parts {
            behind /= choice.len().unwrap_or(1);
            url.push_str(text);
            choice.write(index / behind, &mut url);
            index %= behind;
        }
        url.push_str(&self.rest);
        Some(url)
    }
}

impl Choice {
    /// `None` if it is no placeholder.
    fn parse(inside: &str, close: char) -> Result<Option<Self>, String> {
        if close == '}' && inside.contains(',') {
            return Ok(Some(Choice::Words(inside.split(',').map(str::to_owned).collect())));
        }
        let (between, before_step) = if close == '}' { ("..", "..") } else { ("-", ":") };
        let Some((first, rest)) = inside.split_once(between) else { return Ok(None) };
        let (last, step) = rest.split_once(before_step).map_or((rest, "1"), |(last, step)| (last, step));
        if !is_number(step) {
            return Ok(None);
        }
        let number =
            |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is above 2^64 in the range {inside}"));
        let choice = match (first.as_bytes(), last.as_bytes()) {
            _ if is_number(first) && is_number(last) => {
                let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
                let width = if padded { first.len().max(last.len()) } else { 0 };
                if width > LONGEST_NUMBER {
                    return Err(format!("a range has numbers of more than {LONGEST_NUMBER} digits"));
                }
                Choice::Numbers { first: number(first)?, last: number(last)?, step: number(step)?, width }
            }
            (&[a], &[b])
                if a.is_ascii_lowercase() && b.is_ascii_lowercase()
                    || a.is_ascii_uppercase() && b.is_ascii_uppercase() =>
            {
                Choice::Letters { first: a, last: b, step: number(step)? }
            }
            _ => return Ok(None),
        };
        match choice {
            Choice::Numbers { step: 0, .. } | Choice::Letters { step: 0, .. } => {
                Err(format!("the range {inside} goes in steps of 0"))
            }
            choice => Ok(Some(choice)),
        }
    }

    /// `None` if there are 2^64.
    fn len(&self) -> Option<u64> {
        match *self {
            Choice::Numbers { first, last, step, .. } => (first.abs_diff(last) / step).checked_add(1),
            Choice::Letters { first, last, step } => Some(u64::from(first.abs_diff(last)) / step + 1),
            Choice::Words(ref words) => Some(words.len() as u64),
        }
    }

    /// Writes the value with that index, which is below `len`. Ranges may go down as well as up.
    fn write(&self, index: u64, url: &mut String) {
        match *self {
            Choice::Numbers { first, last, step, width } => {
                let number = if first <= last { first + index * step } else { first - index * step };
                let _ = write!(url, "{number:0width$}"); // Writing to a string can't fail.
            }
            Choice::Letters { first, last, step } => {
                let distance = (index * step) as u8; // At most 25.
                url.push(char::from(if first <= last { first + distance } else { first - distance }));
            }
            Choice::Words(ref words) => url.push_str(&words[index as usize]),
        }
    }
}

/// Digits and nothing else; `parse` would take a sign as well.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(url: &str) -> Vec<String> {
        Template::parse(url).unwrap().map(Iterator::collect).unwrap_or_default()
    }

    #[test]
    fn ranges_and_lists_in_both_notations() {
        assert_eq!(all("/{1..3}"), ["/1", "/2", "/3"]);
        assert_eq!(all("/[1-3]/x"), ["/1/x", "/2/x", "/3/x"]);
        assert_eq!(all("/{3..1}"), ["/3", "/2", "/1"]);
        assert_eq!(all("/{1..10..4}"), ["/1", "/5", "/9"]);
        assert_eq!(all("/[1-10:4]"), ["/1", "/5", "/9"]);
        assert_eq!(all("/{08..11}"), ["/08", "/09", "/10", "/11"]);
        assert_eq!(all("/[8-010:2]"), ["/008", "/010"]);
        assert_eq!(all("/{0..1}"), ["/0", "/1"]);
        assert_eq!(all("/{a..c}{C..A..2}"), ["/aC", "/aA", "/bC", "/bA", "/cC", "/cA"]);
        assert_eq!(all("/[x-z]"), ["/x", "/y", "/z"]);
        assert_eq!(all("/{a,,ü}"), ["/a", "/", "/ü"]);
        assert_eq!(all("http://h{1,2}/{7..8}?q"), ["http://h1/7?q", "http://h1/8?q", "http://h2/7?q", "http://h2/8?q"]);
    }

    #[test]
    fn what_is_no_template_stays_as_it_is() {
        for url in [
            "",
            "/",
            "/{}",
            "/{a}",
            "/{1..}",
            "/{..2}",
            "/{1..2",
            "/1..2}",
            "/[1]",
            "/[]",
            "http://[::1]/",
            "http://[fe80::1-2]/",
            "/{a..Z}",
            "/{1..b}",
            "/{+1..2}",
            "/{-1..2}",
            "/{1...2}",
            "/[a,b]",
            "/{{",
            "/{1..2]",
            "/{[}]",
            "/{1..2..x}",
            "/[1-2:]",
        ] {
            assert!(Template::parse(url).unwrap().is_none(), "{url}");
        }
        assert_eq!(all("/{a{1..2}}"), ["/{a1}", "/{a2}"]);
        assert_eq!(all("/{}[1-2]["), ["/{}1[", "/{}2["]);
    }

    #[test]
    fn long_ranges_are_counted_and_take_no_room() {
        let mut long = Template::parse("/{1..1000000000000}").unwrap().unwrap();
        assert_eq!(long.total(), 1_000_000_000_000);
        assert_eq!(long.nth(9_999).unwrap(), "/10000");
        let ends = Template::parse("/{18446744073709551614..18446744073709551615}").unwrap().unwrap();
        assert_eq!(ends.collect::<Vec<_>>(), ["/18446744073709551614", "/18446744073709551615"]);
        let steps = Template::parse("/{0..18446744073709551615..18446744073709551615}").unwrap().unwrap();
        assert_eq!(steps.collect::<Vec<_>>(), ["/0", "/18446744073709551615"]);
    }

    #[test]
    fn ranges_that_can_not_be_counted_are_refused() {
        for (url, why) in [
            ("/{1..18446744073709551616}", "2^64"),
            ("/{1..2..18446744073709551616}", "2^64"),
            ("/{0..18446744073709551615}", "2^64"),
            ("/[0-9999999999][0-9999999999]", "2^64"),
            (&format!("/{{{:0100}..1}}", 0), "64 digits"),
            ("/{1..5..0}", "steps of 0"),
            ("/[a-z:0]", "steps of 0"),
        ] {
            let error = Template::parse(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }
}
