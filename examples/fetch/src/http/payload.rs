//! What a request sends.

use std::io;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures_util::stream::try_unfold;
use reqwest::header::{CONTENT_LENGTH, HeaderValue};
use reqwest::{Body, Method};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::failure::{Fault, PayloadError};
use crate::output::record::Kind;
use crate::request::Payload;

/// How much of a file is in memory at a time.
const PIECE: usize = 64 * 1024;

/// Puts the payload into a request.
pub(super) async fn attach(payload: &Payload, request: &mut reqwest::Request) -> Result<(), Fault> {
    match payload {
        Payload::None => {
            if [Method::POST, Method::PUT, Method::PATCH].contains(request.method()) {
                say_empty(request);
            }
        }
        Payload::Bytes(bytes) => {
            if bytes.is_empty() {
                say_empty(request);
            }
            *request.body_mut() = Some(bytes.clone().into());
        }
        Payload::File(path) => {
            // In a box: few requests have one, and the state of all would be larger for it.
            let opened = Box::pin(open(path)).await;
            let (body, length) = opened.map_err(|error| Fault::new(Kind::BadInput, unreadable(path, &error).0))?;
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
            *request.body_mut() = Some(body);
        }
    }
    Ok(())
}

/// The client tells no length of a body without bytes. Servers may insist on one where a body is expected (RFC 9110,
/// 8.6).
fn say_empty(request: &mut reqwest::Request) {
    request.headers_mut().insert(CONTENT_LENGTH, const { HeaderValue::from_static("0") });
}

/// A file as a stream, and its length. It must not change meanwhile: the length has been told.
async fn open(path: &Path) -> io::Result<(Body, u64)> {
    let file = File::open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let (length, path) = (metadata.len(), path.to_owned());
    let pieces = try_unfold((file, length), move |(mut file, left)| {
        let path = path.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let mut piece = BytesMut::with_capacity(PIECE.min(usize::try_from(left).unwrap_or(PIECE)));
            let read = (&mut file).take(left).read_buf(&mut piece).await.map_err(|error| unreadable(&path, &error))?;
            if read == 0 {
                return Err(unreadable(&path, &"it became shorter while it was sent"));
            }
            Ok(Some((piece.freeze(), (file, left - read as u64))))
        }
    });
    Ok((
        Body::wrap_stream::<futures_util::stream::BoxStream<'static, Result<Bytes, PayloadError>>>(Box::pin(pieces)),
        length,
    ))
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> PayloadError {
    PayloadError(format!("the body {} can't be read: {why}", path.display()))
}
