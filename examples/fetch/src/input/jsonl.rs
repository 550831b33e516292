//! A JSON object a line: `{"url", "method", "headers", "body", "timeout", "id"}`, all but the first optional.
//!
//! Headers are an object whose values are a string or a list of strings; an empty list takes away a header of the
//! command line. A body is a string, `{"text": …}`, `{"base64": …}` or `{"file": …}`, a timeout a number of seconds or
//! "2s".

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Bad, Draft, HeaderLines, header};
use crate::cli;
use crate::request::Payload;

/// Reads a line. File names in it are as they were written.
pub(super) fn parse(line: &str) -> Result<Draft, String> {
    if !line.starts_with('{') {
        // A list would do for serde, its elements in the order of the fields.
        return Err("the line is no JSON object: give one such as {\"url\": \"https://example.com/\"}".into());
    }
    let row: Row = serde_json::from_str(line).map_err(|error| explain(&error))?;
    let timeout = match row.timeout {
        None => None,
        Some(Timeout::Seconds(seconds)) => Some(cli::some_time(&seconds.to_string())),
        Some(Timeout::Text(text)) => Some(cli::some_time(&text)),
    };
    Ok(Draft {
        url: row.url,
        id: row.id.map(|id| id.0),
        method: row.method.map(|method| header::method(&method)).transpose()?,
        headers: row.headers.map(|headers| headers.0).unwrap_or_default(),
        body: row.body.map(Body::payload).transpose()?,
        timeout: timeout.transpose().map_err(|why| format!("timeout: {why}"))?,
    })
}

/// What is known of a line that is no request, and why it is none: its URL and its id, as far as they can be read, tell
/// its record from others.
pub(super) fn bad(line: &str, why: String) -> Bad {
    #[derive(Deserialize)]
    struct Url {
        url: String,
    }
    #[derive(Deserialize)]
    struct Name {
        id: Id,
    }
    // A list would do for serde as well.
    let line = if line.starts_with('{') { line } else { "" };
    let url = serde_json::from_str(line).map(|Url { url }| url).unwrap_or_default();
    let id = serde_json::from_str(line).map(|Name { id }| id.0).ok();
    Bad { url, id, why }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    url: String,
    method: Option<String>,
    headers: Option<Headers>,
    body: Option<Body>,
    timeout: Option<Timeout>,
    id: Option<Id>,
}

/// A string, or a number as it is written: one with more digits than fit into 64 bits keeps them.
struct Id(Box<str>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a timeout is a number of seconds or a text such as \"2s\"")]
enum Timeout {
    Seconds(f64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a body is a string, {\"text\": …}, {\"base64\": …} or {\"file\": …}")]
enum Body {
    Text(String),
    Tagged(Tagged),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Tagged {
    Text(String),
    Base64(String),
    File(PathBuf),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        match text.as_bytes().first() {
            Some(b'"') => serde_json::from_str(text).map(Id).map_err(de::Error::custom),
            Some(b'-' | b'0'..=b'9') => Ok(Id(text.into())),
            _ => Err(de::Error::custom("an id is a string or a number")),
        }
    }
}

impl Body {
    fn payload(self) -> Result<Payload, String> {
        Ok(match self {
            Body::Text(text) | Body::Tagged(Tagged::Text(text)) => Payload::Bytes(Bytes::from(text)),
            Body::Tagged(Tagged::File(path)) => Payload::File(path),
            Body::Tagged(Tagged::Base64(text)) => {
                let bytes = STANDARD.decode(text).map_err(|error| format!("the body is not base64: {error}"))?;
                Payload::Bytes(Bytes::from(bytes))
            }
        })
    }
}

struct Headers(HeaderLines);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "the value of a header is a string or a list of strings")]
        enum Values {
            One(String),
            Many(Vec<String>),
        }

        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, values)) = map.next_entry::<String, Values>()? {
                    let values = match values {
                        Values::One(value) => vec![value],
                        Values::Many(values) => values,
                    };
                    let values = values.iter().map(|value| header::header(&name, value).map(|(_, value)| value));
                    let values = values.collect::<Result<_, _>>().map_err(de::Error::custom)?;
                    headers.push((header::header_name(&name).map_err(de::Error::custom)?, values));
                }
                Ok(Headers(headers))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// serde_json counts lines within what it is given, which is always one.
fn explain(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line 1 column ") {
        Some((message, "0")) => message.to_owned(),
        Some((message, column)) => format!("{message} at column {column}"),
        None => message,
    }
}
