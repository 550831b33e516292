//! The clients, made from the settings: one for `http:` and one for `https:`.
//!
//! The second is made when the first URL needs it: the certificates of the system take longer to load than hundreds of
//! requests, and more memory than the rest of the program. What the user gave (`--cacert`, `--cert`) is read at the
//! start.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::tls::Version;
use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Url};

use super::failure::Fault;
use super::guard::PublicOnly;
use crate::output::record::Kind;
use crate::settings::{Family, HttpSettings, HttpVersion, Proxy};

/// Shorter than servers commonly wait (5 s and more), so that they seldom close a connection just as it is used again;
/// and a batch over many hosts doesn't gather connections that it never needs again.
const IDLE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Clients {
    plain: Client,
    secure: Lazy,
    /// Those that `--resolve` is for, in the order of the settings. The resolver of a client is not told the port, so
    /// each has clients of its own: other ports of the host are resolved as ever.
    resolved: Vec<(Lazy, Lazy)>,
    recipe: Recipe,
}

/// Made when it is needed.
type Lazy = OnceLock<Result<Client, String>>;

/// Where the connections of a client go, if `--resolve` says so.
type Override = (String, u16, Vec<SocketAddr>);

/// All that clients are made of.
#[derive(Debug)]
struct Recipe {
    settings: HttpSettings,
    /// Besides those of the system.
    roots: Vec<Certificate>,
    identity: Option<Identity>,
}

impl Clients {
    pub(super) fn new(settings: &HttpSettings) -> Result<Self> {
        let mut roots = Vec::new();
        for file in &settings.ca_certificates {
            let unusable = || format!("--cacert {}", file.display());
            let found = Certificate::from_pem_bundle(&read(file).with_context(unusable)?).with_context(unusable)?;
            ensure!(!found.is_empty(), "{}: there is no certificate in it; it has to be PEM", unusable());
            roots.extend(found);
        }
        let identity =
            settings.client_certificate.as_ref().map(|(file, key)| identity(file, key.as_deref())).transpose()?;
        // To be found wrong now and not in every record.
        let now = !roots.is_empty() || identity.is_some();
        let recipe = Recipe { settings: settings.clone(), roots, identity };
        let resolved = settings.resolve.iter().map(|_| Default::default()).collect();
        let clients = Clients { plain: recipe.plain(None)?, secure: OnceLock::new(), resolved, recipe };
        if now && let Err(message) = clients.secure() {
            bail!("--cacert or --cert can't be used: {message}");
        }
        Ok(clients)
    }

    /// The client for a URL.
    pub(super) fn get(&self, url: &Url) -> Result<&Client, Fault> {
        let is_plain = url.scheme() == "http";
        if !self.resolved.is_empty()
            && let (host, port) = (url.host_str(), url.port_or_known_default())
            // The last one counts, as in curl.
            && let Some((over, (plain, secure))) = self.recipe.settings.resolve.iter().zip(&self.resolved)
                .rfind(|((name, number, _), _)| host == Some(name) && port == Some(*number))
        {
            let made = if is_plain {
                plain.get_or_init(|| self.recipe.plain(Some(over)).map_err(|error| format!("{error:#}")))
            } else {
                secure.get_or_init(|| self.recipe.secure(Some(over)).map_err(|error| format!("{error:#}")))
            };
            return made.as_ref().map_err(|message| Fault::new(Kind::Tls, message));
        }
        if is_plain {
            return Ok(&self.plain);
        }
        self.secure().map_err(|message| Fault::new(Kind::Tls, message))
    }

    fn secure(&self) -> Result<&Client, &str> {
        let made = self.secure.get_or_init(|| self.recipe.secure(None).map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(String::as_str)
    }
}

impl Recipe {
    fn plain(&self, over: Option<&Override>) -> Result<Client> {
        if is_secure(&self.settings.proxy) {
            return self.secure(over);
        }
        // No certificates at all: it never sees TLS.
        let mut builder = self.common(over)?.tls_certs_only([]);
        if self.settings.version != HttpVersion::Http2PriorKnowledge {
            // By itself the client repeats what a server of HTTP/2 has refused, and keeps a copy of each request for
            // that. Without TLS no server speaks HTTP/2 unasked. `never` alone would still copy; no retries don't.
            builder = builder.retry(reqwest::retry::never().max_retries_per_request(0));
        }
        Ok(builder.build()?)
    }

    fn secure(&self, over: Option<&Override>) -> Result<Client> {
        let mut builder = self.common(over)?.tls_danger_accept_invalid_certs(self.settings.insecure);
        if self.settings.tls13 {
            builder = builder.tls_version_min(Version::TLS_1_3);
        }
        if !self.roots.is_empty() {
            builder = builder.tls_certs_merge(self.roots.clone());
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        builder.build().context("no TLS: the certificates can't be loaded; --cacert FILE names others")
    }

    fn common(&self, over: Option<&Override>) -> Result<ClientBuilder> {
        let settings = &self.settings;
        let mut builder = Client::builder()
            // Redirects are followed here, hop by hop: each is checked, and goes to the client it needs.
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(IDLE)
            .brotli(settings.compressed)
            .http1_allow_obsolete_multiline_headers_in_responses(true);
        builder = match settings.version {
            HttpVersion::Any => builder,
            HttpVersion::Http1 => builder.http1_only(),
            HttpVersion::Http2PriorKnowledge => builder.http2_prior_knowledge(),
        };
        if settings.compressed {
            // It would leave out gzip and zstd, which are decoded here.
            let encodings = HeaderValue::from_static("gzip, br, zstd");
            builder = builder.default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, encodings)]));
        }
        if !settings.user_agent.is_empty() {
            builder = builder.user_agent(&settings.user_agent);
        }
        // Where connections come from says where they may go.
        builder = match settings.family {
            None => builder,
            Some(Family::V4) => builder.local_address(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            Some(Family::V6) => builder.local_address(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        if settings.deny_private {
            builder = builder.dns_resolver(PublicOnly);
        }
        let to_proxy = |(host, port, _): &&Override| match &settings.proxy {
            Proxy::At { url, .. } => url.host_str() == Some(host) && url.port_or_known_default() == Some(*port),
            _ => false,
        };
        for (host, _, addresses) in settings.resolve.iter().filter(to_proxy).chain(over) {
            builder = builder.resolve_to_addrs(host, addresses);
        }
        Ok(match &settings.proxy {
            Proxy::None => builder.no_proxy(),
            Proxy::Environment => builder,
            Proxy::At { url, except } => {
                let proxy = reqwest::Proxy::all(url.clone()).context("--proxy can't be used")?;
                builder.proxy(proxy.no_proxy(NoProxy::from_string(except)))
            }
        })
    }
}

fn identity(file: &Path, key: Option<&Path>) -> Result<Identity> {
    let mut pem = read(file).with_context(|| format!("--cert {}", file.display()))?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key).with_context(|| format!("--key {}", key.display()))?);
    }
    let wrong = "a certificate and its key are needed, both as PEM; a key in a file of its own is given with --key";
    Identity::from_pem(&pem).with_context(|| format!("--cert {}: {wrong}", file.display()))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context("it can't be read")
}

/// The way to the proxy itself is TLS.
fn is_secure(proxy: &Proxy) -> bool {
    match proxy {
        Proxy::None => false,
        Proxy::Environment => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .any(|proxy| proxy.to_ascii_lowercase().starts_with("https:")),
        Proxy::At { url, .. } => url.scheme() == "https",
    }
}
