//! The clients, made from the settings: one for `http:` and one for `https:`, and as many again for a crowd of hosts.
//!
//! The second is made when the first URL needs it: the certificates of the system take longer to load than hundreds of
//! requests, and more memory than the rest of the program. What the user gave (`--cacert`, `--cert`) is read at the
//! start.

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::tls::Version;
use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Url};

use super::failure::Fault;
use super::guard::PublicOnly;
use crate::output::record::Kind;
use crate::request::Origin;
use crate::settings::{Family, HttpSettings, HttpVersion, Proxy};

/// How long a connection waits to be used again. Shorter than servers commonly wait (5 s and more), so that they seldom
/// close one just as it is used again.
const IDLE: Duration = Duration::from_secs(4);

/// The same in a crowd: long enough for a redirect, and too short for thousands of connections to gather, each of which
/// takes a descriptor, and 15 KiB of memory or, with TLS, 40.
const IDLE_IN_CROWD: Duration = Duration::from_millis(100);

/// So many new hosts within [`IDLE`] are a crowd: they hardly come again while their connections wait.
const MANY_HOSTS: usize = 512;

#[derive(Debug)]
pub(super) struct Clients {
    plain: Client,
    secure: Lazy,
    /// For a crowd of hosts.
    crowd: (Crowd, Lazy, Lazy),
    /// Those that `--resolve` is for. The resolver of a client is not told the port, so two ports of a host are in
    /// different groups, and other ports of it with the other clients.
    resolved: Vec<Group>,
    recipe: Recipe,
}

/// Made when it is needed.
type Lazy = OnceLock<Result<Client, String>>;

/// Where the connections of a client go, if `--resolve` says so.
type Override = (String, u16, Vec<SocketAddr>);

/// Overrides for different hosts, and their clients.
#[derive(Debug, Default)]
struct Group {
    overrides: Vec<Override>,
    plain: Lazy,
    secure: Lazy,
}

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
        let resolved = groups(&settings.resolve, &settings.proxy);
        let plain = recipe.plain(IDLE, &[])?;
        let clients = Clients { plain, secure: OnceLock::new(), crowd: Default::default(), resolved, recipe };
        if now && let Err(message) = clients.secure() {
            bail!("--cacert or --cert can't be used: {message}");
        }
        Ok(clients)
    }

    /// The client for a URL.
    pub(super) fn get(&self, url: &Url) -> Result<&Client, Fault> {
        let is_plain = url.scheme() == "http";
        let is_for = |group: &&Group| group.overrides.iter().any(|(host, port, _)| is_at(url, host, *port));
        if let Some(Group { overrides, plain, secure }) = self.resolved.iter().find(is_for) {
            return self.recipe.made(is_plain, plain, secure, IDLE, overrides);
        }
        let (crowd, plain, secure) = &self.crowd;
        if crowd.grows(url) {
            return self.recipe.made(is_plain, plain, secure, IDLE_IN_CROWD, &[]);
        }
        if is_plain {
            return Ok(&self.plain);
        }
        self.secure().map_err(|message| Fault::new(Kind::Tls, message))
    }

    fn secure(&self) -> Result<&Client, &str> {
        let made = self.secure.get_or_init(|| self.recipe.secure(IDLE, &[]).map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(String::as_str)
    }
}

/// Tells when there are many new hosts.
#[derive(Debug, Default)]
struct Crowd(Mutex<Recent>);

/// Of the span of [`IDLE`] that began at `since`, and of the one before it.
#[derive(Debug, Default)]
struct Recent {
    /// The one that came last, if there was no crowd: often the next one is the same.
    quiet: Option<Origin>,
    since: Option<Instant>,
    hasher: RandomState,
    /// Hashes of the origins, and how many of them were not there before.
    origins: HashSet<u64>,
    new: usize,
    before: HashSet<u64>,
    new_before: usize,
}

impl Crowd {
    /// Counts a request, and says whether it is one of many to new hosts.
    fn grows(&self, url: &Url) -> bool {
        self.grows_at(url, Instant::now)
    }

    fn grows_at(&self, url: &Url, now: impl FnOnce() -> Instant) -> bool {
        let mut recent = self.0.lock();
        if recent.quiet.as_ref().is_some_and(|origin| origin.is_of(url)) {
            return false;
        }
        let crowd = recent.grows(url, now());
        recent.quiet = (!crowd).then(|| Origin::of(url));
        crowd
    }
}

impl Recent {
    fn grows(&mut self, url: &Url, now: Instant) -> bool {
        // More than this is not remembered; such are new each time.
        const MOST: usize = 16 * MANY_HOSTS;
        if self.since.is_none_or(|since| now.duration_since(since) >= IDLE) {
            self.since = Some(now);
            self.before = mem::take(&mut self.origins);
            self.new_before = mem::take(&mut self.new);
        }
        let origin = self.hasher.hash_one((url.scheme(), url.host_str(), url.port()));
        let is_first =
            if self.origins.len() < MOST { self.origins.insert(origin) } else { !self.origins.contains(&origin) };
        self.new += usize::from(is_first && !self.before.contains(&origin));
        self.new.max(self.new_before) > MANY_HOSTS
    }
}

/// As few groups as possible. Of several overrides for the same host and port the last one counts, as in curl. Those
/// for the host of a proxy stay alone: in company, they would say where the proxy is for the others.
fn groups(overrides: &[Override], proxy: &Proxy) -> Vec<Group> {
    let is_proxy = |host: &str| proxies(proxy).any(|url| url.host_str() == Some(host));
    let mut groups: Vec<Group> = Vec::new();
    for (host, port, addresses) in overrides {
        let mut all = groups.iter_mut().flat_map(|group| &mut group.overrides);
        if let Some((.., known)) = all.find(|(name, number, _)| (name, number) == (host, port)) {
            known.clone_from(addresses);
            continue;
        }
        let alone = is_proxy(host);
        let has_room = |group: &Group| {
            let mut others = group.overrides.iter();
            if alone { others.len() == 0 } else { others.all(|(name, ..)| name != host && !is_proxy(name)) }
        };
        let index = groups.iter().position(has_room).unwrap_or(groups.len());
        groups.resize_with(groups.len().max(index + 1), Group::default);
        groups[index].overrides.push((host.clone(), *port, addresses.clone()));
    }
    groups
}

impl Recipe {
    /// One of two clients, made now if it isn't there.
    fn made<'a>(
        &self,
        is_plain: bool,
        plain: &'a Lazy,
        secure: &'a Lazy,
        idle: Duration,
        over: &[Override],
    ) -> Result<&'a Client, Fault> {
        let message = |error| format!("{error:#}");
        let made = if is_plain {
            plain.get_or_init(|| self.plain(idle, over).map_err(message))
        } else {
            secure.get_or_init(|| self.secure(idle, over).map_err(message))
        };
        made.as_ref().map_err(|message| Fault::new(Kind::Tls, message))
    }

    fn plain(&self, idle: Duration, over: &[Override]) -> Result<Client> {
        // The way to a proxy itself may be TLS.
        let proxy = match &self.settings.proxy {
            Proxy::None => None,
            Proxy::Environment { http, .. } => http.as_ref(),
            Proxy::At { url, .. } => Some(url),
        };
        if proxy.is_some_and(|proxy| proxy.scheme() == "https") {
            return self.secure(idle, over);
        }
        // No certificates at all: it never sees TLS.
        let mut builder = self.common(idle, over)?.tls_certs_only([]);
        if self.settings.version != HttpVersion::Http2PriorKnowledge {
            // By itself the client repeats what a server of HTTP/2 has refused, and keeps a copy of each request for
            // that. Without TLS no server speaks HTTP/2 unasked. `never` alone would still copy; no retries don't.
            builder = builder.retry(reqwest::retry::never().max_retries_per_request(0));
        }
        Ok(builder.build()?)
    }

    fn secure(&self, idle: Duration, over: &[Override]) -> Result<Client> {
        let mut builder = self.common(idle, over)?.tls_danger_accept_invalid_certs(self.settings.insecure);
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

    fn common(&self, idle: Duration, over: &[Override]) -> Result<ClientBuilder> {
        let settings = &self.settings;
        let mut builder = Client::builder()
            // Redirects are followed here, hop by hop: each is checked, and goes to the client it needs.
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(idle)
            .http1_allow_obsolete_multiline_headers_in_responses(true);
        builder = match settings.version {
            HttpVersion::Any => builder,
            HttpVersion::Http1 => builder.http1_only(),
            HttpVersion::Http2PriorKnowledge => builder.http2_prior_knowledge(),
        };
        if settings.compressed {
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
        let to_proxy = |(host, port, _): &&Override| proxies(&settings.proxy).any(|url| is_at(url, host, *port));
        for (host, _, addresses) in settings.resolve.iter().filter(to_proxy).chain(over) {
            builder = builder.resolve_to_addrs(host, addresses);
        }
        Ok(match &settings.proxy {
            Proxy::None => builder.no_proxy(),
            Proxy::Environment { .. } => builder,
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

fn proxies(proxy: &Proxy) -> impl Iterator<Item = &Url> {
    let (one, other) = match proxy {
        Proxy::None => (None, None),
        Proxy::Environment { http, https } => (http.as_ref(), https.as_ref()),
        Proxy::At { url, .. } => (Some(url), None),
    };
    one.into_iter().chain(other)
}

/// Whether a URL leads to a host and port.
fn is_at(url: &Url, host: &str, port: u16) -> bool {
    url.host_str() == Some(host) && url.port_or_known_default() == Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_one_host_are_in_different_groups() {
        let over = |host: &str, port, last| (host.to_owned(), port, vec![SocketAddr::from(([127, 0, 0, last], port))]);
        let all = [over("a", 80, 1), over("b", 80, 2), over("a", 443, 3), over("c", 443, 4), over("b", 80, 5)];
        let of = |proxy| groups(&all, &proxy).into_iter().map(|group| group.overrides).collect::<Vec<_>>();
        let groups = of(Proxy::None);
        assert_eq!(groups, [vec![over("a", 80, 1), over("b", 80, 5), over("c", 443, 4)], vec![over("a", 443, 3)]]);
        let proxy = Proxy::At { url: "http://b:3128/".parse().unwrap(), except: String::new() };
        let apart = [vec![over("a", 80, 1), over("c", 443, 4)], vec![over("b", 80, 5)], vec![over("a", 443, 3)]];
        assert_eq!(of(proxy), apart);
    }

    #[test]
    fn many_new_hosts_are_a_crowd_and_many_known_ones_are_none() {
        let start = Instant::now();
        let crowd = Crowd::default();
        let crowded = |second: u64, hosts: std::ops::Range<usize>| {
            let now = start + Duration::from_secs(second);
            hosts.filter(|host| crowd.grows_at(&format!("http://h{host}/").parse().unwrap(), || now)).count()
        };
        assert_eq!(crowded(0, 0..MANY_HOSTS), 0);
        assert_eq!(crowded(3, 0..MANY_HOSTS), 0, "they were there before");
        assert_eq!(crowded(3, MANY_HOSTS..MANY_HOSTS + 10), 10);
        assert_eq!(crowded(4, 0..10), 10, "a moment ago there were many");
        assert_eq!(crowded(5, 9..10) + crowded(5, 9..10), 2, "also for the one that was the last");
        assert_eq!(crowded(8, 9..10), 0);
        assert_eq!(crowded(8, 0..10), 0);
        assert_eq!(crowded(16, 10_000..11_000), 1_000 - MANY_HOSTS);
        // More than are remembered, and for long.
        assert_eq!(crowded(20, 20_000..60_000), 40_000);
        assert_eq!(crowded(24, 20_000..60_000), 40_000);
        assert!(crowd.0.lock().origins.len() < 10_000);
    }
}
