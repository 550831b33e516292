//! `--deny-private`: nothing but public addresses, for URLs given by people who are not trusted.
//!
//! Hosts that are addresses are checked before each request, and so on every redirect; the parser of URLs has turned
//! `127.1`, `2130706433` and `0x7f.1` into what they mean. Names are checked after they were resolved, where the
//! connection is made: it goes to one of the addresses that passed, and there is no second look-up that could say
//! something else. Addresses that the user gave with `--resolve` are meant, and pass.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// An address that is not fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    /// Unless the URL itself has the address.
    host: Option<String>,
    address: IpAddr,
    what: &'static str,
}

/// Not public, by the IANA IPv4 Special-Purpose Address Registry and the IPv4 Multicast Address Space Registry.
const IPV4: [(Ipv4Addr, u32, &str); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "of this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared by a carrier's customers"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "this machine"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "for protocols"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a 6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "for documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::BROADCAST, 32, "broadcast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Not public, by the IANA IPv6 Special-Purpose Address Registry, with names; what is left outside of 2000::/3 is not
/// global unicast (IANA IPv6 Address Space Registry).
const IPV6: [(Ipv6Addr, u32, &str); 13] = [
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "this machine"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "an IPv4 address in disguise"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 96, "an IPv4 address in disguise"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "a local translation of IPv4"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "to be discarded"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "for protocols"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "for documentation"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "for documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "private"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// Addresses with an IPv4 address in them that a router on the way takes out again, and how far from the end it stands.
const CARRIERS: [(Ipv6Addr, u32, u32); 2] = [
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, 0), // NAT64
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, 80),   // 6to4
];

const GLOBAL_UNICAST: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Refuses a URL whose host is an address that is not public.
pub(super) fn check(url: &Url) -> Result<(), Denied> {
    // The brackets of IPv6 are not part of the address. Names are for the resolver.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let Ok(address) = host.parse() else { return Ok(()) };
    match special(address) {
        Some(what) => Err(Denied { host: None, address, what }),
        None => Ok(()),
    }
}

/// What an address is for, unless it is public.
fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => {
            let within =
                |&&(net, length, _): &&(Ipv4Addr, u32, &str)| (address.to_bits() ^ net.to_bits()) >> (32 - length) == 0;
            IPV4.iter().find(within).map(|&(_, _, what)| what)
        }
        IpAddr::V6(address) => {
            let within = |net: Ipv6Addr, length: u32| (address.to_bits() ^ net.to_bits()) >> (128 - length) == 0;
            if let Some((_, _, shift)) = CARRIERS.iter().find(|&&(net, length, _)| within(net, length)) {
                let low = (address.to_bits() >> shift) & u128::from(u32::MAX);
                return special(Ipv4Addr::from_bits(low as u32).into());
            }
            let known = IPV6.iter().find(|&&(net, length, _)| within(net, length)).map(|&(_, _, what)| what);
            known.or_else(|| (!within(GLOBAL_UNICAST.0, GLOBAL_UNICAST.1)).then_some("not global"))
        }
    }
}

/// Resolves names to public addresses only.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(public(name.as_str(), found)?.into_iter()) as Addrs)
        })
    }
}

/// The public ones among the addresses of a host; an error if there are none.
fn public(host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let mut denied = None;
    let mut public = Vec::with_capacity(found.len());
    for address in found {
        match special(address.ip()) {
            Some(what) => denied = Some(Denied { host: Some(host.to_owned()), address: address.ip(), what }),
            None => public.push(address),
        }
    }
    match denied {
        _ if !public.is_empty() => Ok(public),
        Some(denied) => Err(denied.into()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into()),
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denied { host, address, what } = self;
        if let Some(host) = host {
            write!(f, "{host} is at ")?;
        }
        write!(f, "{address}, which is {what}: not fetched under --deny-private")
    }
}

impl Error for Denied {}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_public(address: &str) -> bool {
        special(address.parse().unwrap()).is_none()
    }

    #[test]
    fn every_range_ends_where_it_should() {
        // Each pair: the last public address before a range or the first after it, and the address next to it inside.
        for (outside, inside) in [
            ("1.0.0.0", "0.255.255.255"),
            ("9.255.255.255", "10.0.0.0"),
            ("11.0.0.0", "10.255.255.255"),
            ("100.63.255.255", "100.64.0.0"),
            ("100.128.0.0", "100.127.255.255"),
            ("126.255.255.255", "127.0.0.0"),
            ("128.0.0.0", "127.255.255.255"),
            ("169.253.255.255", "169.254.0.0"),
            ("169.255.0.0", "169.254.169.254"),
            ("172.15.255.255", "172.16.0.0"),
            ("172.32.0.0", "172.31.255.255"),
            ("192.0.1.0", "192.0.0.255"),
            ("192.0.3.0", "192.0.2.255"),
            ("192.88.98.255", "192.88.99.1"),
            ("192.167.255.255", "192.168.0.0"),
            ("192.169.0.0", "192.168.255.255"),
            ("198.17.255.255", "198.18.0.0"),
            ("198.20.0.0", "198.19.255.255"),
            ("198.51.101.0", "198.51.100.255"),
            ("203.0.112.255", "203.0.113.0"),
            ("223.255.255.255", "224.0.0.0"),
            ("8.8.8.8", "255.255.255.255"),
            ("2000::", "1fff:ffff::"),
            ("3ffe::", "4000::"),
            ("2001:200::", "2001:1ff::"),
            ("2001:db7::1", "2001:db8::1"),
            ("2606:4700::1111", "::1"),
            ("2a00:1450::1", "::"),
            ("64:ff9b::8.8.8.8", "64:ff9b::10.0.0.1"),
            ("64:ff9b::1.1.1.1", "64:ff9b::127.0.0.1"),
            ("2002:808:808::1", "2002:7f00:1::1"),
            ("2002:101:101::", "2002:c0a8:101::"),
            ("2620::1", "64:ff9b:1::1"),
            ("2620::1", "::ffff:8.8.8.8"),
            ("2620::1", "::ffff:127.0.0.1"),
            ("2620::1", "::127.0.0.1"),
            ("2620::1", "100::1"),
            ("2620::1", "2001::1"),
            ("3ffe:ffff::", "3fff::1"),
            ("2620::1", "5f00::1"),
            ("2620::1", "fc00::1"),
            ("2620::1", "fdff::1"),
            ("2620::1", "fe80::1"),
            ("2620::1", "fec0::1"),
            ("2620::1", "ff02::1"),
        ] {
            assert!(is_public(outside), "{outside}");
            assert!(!is_public(inside), "{inside}");
        }
    }

    #[test]
    fn hosts_are_seen_through() {
        for url in [
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://１２７.０.０.１/",
            "http://127.0.0.1./",
            "http://0/",
            "http://user@10.0.0.1:8080/",
        ] {
            let denied = check(&Url::parse(url).unwrap());
            assert!(denied.is_err(), "{url}");
        }
        for url in ["http://example.com/", "http://8.8.8.8/", "http://[2606:4700::1111]/", "http://localhost/"] {
            assert_eq!(check(&Url::parse(url).unwrap()), Ok(()), "{url}"); // names are for the resolver
        }
    }

    #[test]
    fn only_the_public_addresses_of_a_name_are_left() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 0);
        assert_eq!(public("x", vec![at("10.0.0.1"), at("8.8.8.8"), at("::1")]).unwrap(), [at("8.8.8.8")]);
        let error = public("x", vec![at("10.0.0.1")]).unwrap_err();
        assert_eq!(error.to_string(), "x is at 10.0.0.1, which is private: not fetched under --deny-private");
        assert!(!public("x", vec![]).unwrap_err().is::<Denied>());
    }
}
