//! A small server on the loopback interface, so that `fetch --demo` works on a machine without a network.
//!
//! `/status/404` answers with that status, `/bytes/1000` with so many bytes, any other path with a greeting;
//! `?sleep=50` lets any of them take so many milliseconds.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::report::say;
use crate::settings::{Proxy, Settings};

/// What is fetched when no paths are given.
pub(crate) const PATHS: [&str; 8] = [
    "/",
    "/?sleep=300",
    "/?sleep=100",
    "/status/204",
    "/status/404",
    "/status/503?sleep=50",
    "/bytes/100000",
    "/a/b.html",
];

#[derive(Deserialize)]
struct Sleep {
    #[serde(default)]
    sleep: u64,
}

/// Starts the server, which ends with the program, and makes it the one that paths are fetched from.
pub(crate) async fn start(settings: &mut Settings) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/status/{status}", get(status))
        .route("/bytes/{count}", get(async |Path(count): Path<u32>| vec![b'x'; count as usize]))
        .fallback(async || "hello\n")
        .layer(from_fn(slow));
    tokio::spawn(axum::serve(listener, router).into_future());
    say(format_args!("demo server on http://{address}"));
    let input = &mut settings.input;
    input.base = Some(format!("http://{address}").parse()?);
    if input.urls.is_empty() && input.files.is_empty() {
        input.urls = PATHS.map(str::to_owned).to_vec();
    }
    settings.http.proxy = Proxy::None;
    Ok(())
}

async fn status(Path(status): Path<u16>) -> (StatusCode, &'static str) {
    match StatusCode::from_u16(status) {
        Ok(status) if !status.is_informational() => (status, ""),
        _ => (StatusCode::BAD_REQUEST, "give a status from 200 to 999\n"),
    }
}

async fn slow(Query(Sleep { sleep }): Query<Sleep>, request: Request, next: Next) -> Response {
    tokio::time::sleep(Duration::from_millis(sleep)).await;
    next.run(request).await
}
