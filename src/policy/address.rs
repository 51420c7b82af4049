//! Which addresses may be dialled: an allow predicate, not a deny list.
//!
//! An address passes if the IANA special-purpose registries (RFC 6890 and its updates) leave it for everybody, it is
//! no provider's private door and it is not our own; or if the rule that allowed the destination names it. The bad
//! answers of a name are dropped, the good ones kept, and exactly those may be dialled: nothing is resolved twice.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::destination::{Allowed, Literal};
use crate::addr::{Families, PrefixSet};
use crate::outcome::Refusal;

/// Addresses that are kept of one name.
pub const ADDRESSES_MAX: usize = 16;

/// Proof that every address in it was judged and may be dialled, at this port, for this destination.
#[derive(Clone, Debug)]
pub struct Checked {
    addresses: Vec<IpAddr>,
    port: u16,
}

/// What is ours and therefore nobody's destination.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Fixed and local addresses: every port of them.
    pub addresses: HashSet<IpAddr>,
    /// Egress listeners and the admin listener: never dialled, whatever a rule says, or a client could go round in
    /// circles and reach what listens for the operator only.
    pub doors: Vec<SocketAddr>,
    /// What stands for names: nobody is there, and a name that leads there would lead round in circles.
    pub synthetic: PrefixSet,
}

/// Why one address may be dialled or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Dialled,
    /// There is no fixed address of its family.
    NoFixedAddress,
    /// It is our own, or leads to a listener of ours.
    Ours,
    /// An earlier rule denies it.
    Denied,
    /// It is special-purpose or private, and the rule does not name it.
    Special,
}

/// Judges what the destination resolved to. IPv6 and IPv4 take turns in the result, IPv6 first (RFC 8305 section 4).
pub fn check(
    allowed: &Allowed,
    found: &[IpAddr],
    own: &Own,
    families: Families,
) -> Result<Checked, Refusal> {
    let port = allowed.destination().port;
    let mut seen = HashSet::new();
    let passed: Vec<IpAddr> = found
        .iter()
        .map(IpAddr::to_canonical)
        .filter(|address| judge(*address, port, allowed, own) == Verdict::Dialled)
        .filter(|address| seen.insert(*address))
        .collect();
    if passed.is_empty() {
        return Err(Refusal::AddressDenied);
    }
    let addresses = in_turn(passed, families);
    if addresses.is_empty() {
        return Err(Refusal::FamilyWithoutAddress);
    }
    Ok(Checked { addresses, port })
}

impl Checked {
    /// In the order in which they are to be dialled; at least one.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The destination's port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Own {
    /// Whether an egress or admin listener takes what is sent to `address`.
    pub fn is_door(&self, address: IpAddr, port: u16) -> bool {
        self.doors.iter().any(|door| {
            let every = door.ip().is_unspecified() && self.is_ours(address);
            door.port() == port && (door.ip().to_canonical() == address || every)
        })
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => nat64(v6).map(IpAddr::V4),
        };
        self.addresses.contains(&address)
            || address.is_loopback()
            || embedded.is_some_and(|v4| self.addresses.contains(&v4))
    }
}

/// Judges one address of what is allowed.
pub fn verdict(allowed: &Allowed, address: IpAddr, own: &Own, families: Families) -> Verdict {
    let address = address.to_canonical();
    match judge(address, allowed.destination().port, allowed, own) {
        Verdict::Dialled if !families.have(address) => Verdict::NoFixedAddress,
        verdict => verdict,
    }
}

fn judge(address: IpAddr, port: u16, allowed: &Allowed, own: &Own) -> Verdict {
    // Connecting to the unspecified address reaches loopback, past everything said about that.
    if address.is_unspecified() || own.is_door(address, port) || own.synthetic.contains(address) {
        return Verdict::Ours;
    }
    let embedded = match address {
        IpAddr::V6(v6) => nat64(v6).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    if allowed.denies(address) || embedded.is_some_and(|v4| allowed.denies(v4)) {
        return Verdict::Denied;
    }
    let unless_ours = |ours: bool| {
        if ours {
            Verdict::Ours
        } else {
            Verdict::Dialled
        }
    };
    if allowed.covers(address) {
        // All of loopback is ours; of other networks only what was named as itself, or a private network around the
        // gateway would open the gateway.
        let named = address.is_loopback() || allowed.names(address);
        return unless_ours(!named && own.addresses.contains(&address));
    }
    match allowed.literal() {
        Literal::Exact => Verdict::Dialled,
        Literal::Network => unless_ours(own.addresses.contains(&address)),
        Literal::No if !is_public(address) => Verdict::Special,
        Literal::No => unless_ours(own.is_ours(address)),
    }
}

fn in_turn(passed: Vec<IpAddr>, families: Families) -> Vec<IpAddr> {
    let usable = passed.into_iter().filter(|a| families.have(*a));
    let (v6, v4): (Vec<_>, Vec<_>) = usable.partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut turns = Vec::new();
    while turns.len() < ADDRESSES_MAX {
        let before = turns.len();
        turns.extend(v6.next());
        turns.extend(v4.next());
        if turns.len() == before {
            break;
        }
    }
    turns.truncate(ADDRESSES_MAX);
    turns
}

/// Whether the registries leave `address` to everybody. IPv4-mapped addresses count as IPv4.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !in_any(v4.to_bits(), &SPECIAL_V4, 32, u32::checked_shr),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// Whether `address` means something only within one organisation or machine: private, shared, loopback or link-local.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = matches!(v4.octets(), [100, 64..=127, ..]);
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Global unicast is 2000::/3 (RFC 4291 section 2.4); all that lies outside is special but for NAT64, which is
/// what the IPv4 address inside it is.
fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = nat64(address) {
        return is_public(IpAddr::V4(v4));
    }
    let bits = address.to_bits();
    bits >> 125 == 0b001
        && !in_any(bits, &SPECIAL_V6, 128, u128::checked_shr)
        && !is_isatap(address)
}

/// The IPv4 address in 64:ff9b::/96 (RFC 6052 section 2.2).
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

/// An IPv4 address inside an interface identifier `[02]00:5efe:a.b.c.d`, under any prefix (RFC 5214 section 6.1).
fn is_isatap(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _])
}

fn in_any<T: Copy + PartialEq>(
    bits: T,
    blocks: &[(T, u32)],
    width: u32,
    shift: fn(T, u32) -> Option<T>,
) -> bool {
    blocks
        .iter()
        .any(|(block, length)| shift(bits, width - length) == shift(*block, width - length))
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    Ipv4Addr::new(a, b, c, d).to_bits()
}

const fn v6(a: u16, b: u16) -> u128 {
    Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0).to_bits()
}

/// Network and length; the IANA IPv4 special-purpose registry, multicast, and one provider's private door.
const SPECIAL_V4: [(u32, u32); 18] = [
    (v4(0, 0, 0, 0), 8),          // this network
    (v4(10, 0, 0, 0), 8),         // private
    (v4(100, 64, 0, 0), 10),      // shared (CGNAT); one cloud's metadata
    (v4(127, 0, 0, 0), 8),        // loopback
    (v4(168, 63, 129, 16), 32),   // Azure's host agent, a public address
    (v4(169, 254, 0, 0), 16),     // link-local; metadata of most clouds
    (v4(172, 16, 0, 0), 12),      // private
    (v4(192, 0, 0, 0), 24),       // protocol assignments
    (v4(192, 0, 2, 0), 24),       // documentation
    (v4(192, 88, 99, 0), 24),     // 6to4 relays, withdrawn
    (v4(192, 168, 0, 0), 16),     // private
    (v4(198, 18, 0, 0), 15),      // benchmarks; synthetic addresses
    (v4(198, 51, 100, 0), 24),    // documentation
    (v4(203, 0, 113, 0), 24),     // documentation
    (v4(224, 0, 0, 0), 4),        // multicast
    (v4(233, 252, 0, 0), 24),     // documentation
    (v4(240, 0, 0, 0), 4),        // reserved
    (v4(255, 255, 255, 255), 32), // broadcast
];

/// What is special-purpose within 2000::/3.
const SPECIAL_V6: [(u128, u32); 4] = [
    (v6(0x2001, 0), 23),     // protocol assignments: Teredo, ORCHID, AMT and others
    (v6(0x2001, 0xdb8), 32), // documentation
    (v6(0x2002, 0), 16),     // 6to4, embeds IPv4
    (v6(0x3fff, 0), 20),     // documentation
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Destination;
    use crate::config::typed::{Action, DestinationPattern, PolicyRule};
    use crate::policy::destination::Destinations;

    const BOTH: Families = Families::BOTH;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// First, one inside, and last address of every special-purpose block, with the nearest public neighbours.
    #[test]
    fn every_row_of_the_registries_is_special_and_its_neighbours_are_not() {
        for row in [
            "0.0.0.0 0.0.0.1 0.255.255.255 | 1.0.0.0",
            "10.0.0.0 10.1.2.3 10.255.255.255 | 9.255.255.255 11.0.0.0",
            "100.64.0.0 100.100.100.200 100.127.255.255 | 100.63.255.255 100.128.0.0",
            "127.0.0.0 127.0.0.1 127.255.255.255 | 126.255.255.255 128.0.0.0",
            "168.63.129.16 | 168.63.129.15 168.63.129.17",
            "169.254.0.0 169.254.169.254 169.254.170.2 169.254.170.23 169.254.255.255 | 169.253.255.255 169.255.0.0",
            "172.16.0.0 172.31.255.255 | 172.15.255.255 172.32.0.0",
            "192.0.0.0 192.0.0.192 192.0.0.255 | 191.255.255.255 192.0.1.0",
            "192.0.2.0 192.0.2.255 | 192.0.1.255 192.0.3.0",
            "192.88.99.0 192.88.99.255 | 192.88.98.255 192.88.100.0",
            "192.168.0.0 192.168.255.255 | 192.167.255.255 192.169.0.0",
            "198.18.0.0 198.19.255.255 | 198.17.255.255 198.20.0.0",
            "198.51.100.0 198.51.100.255 | 198.51.99.255 198.51.101.0",
            "203.0.113.0 203.0.113.255 | 203.0.112.255 203.0.114.0",
            "224.0.0.0 233.252.0.1 239.255.255.255 240.0.0.0 255.255.255.255 | 223.255.255.255",
            ":: ::1 ::7f00:1 ::8.8.8.8 |",
            "::ffff:127.0.0.1 ::ffff:10.0.0.1 | ::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8 ::ffff:0:127.0.0.1 |",
            "64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 | 64:ff9b::8.8.8.8",
            "100::1 100:0:0:1::1 |",
            "2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:20::1 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff | 2001:200::1",
            "2001:db8::1 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff | 2001:db9::1",
            "2002:7f00:1::1 2002:808:808::1 | 2003::1",
            "3fff::1 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff | 3fff:1000::1",
            "4000::1 5f00::1 | 2606:4700::1111",
            "fc00::1 fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe fe80::1 fec0::1 ff02::1 |",
            "2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:8.8.8.8 | 2606:4700::5eff:127.0.0.1",
        ] {
            let (special, public) = row.split_once('|').unwrap();
            for text in special.split_whitespace() {
                assert!(!is_public(ip(text)), "{text} is special");
            }
            for text in public.split_whitespace() {
                assert!(is_public(ip(text)), "{text} is public");
            }
        }
    }

    proptest! {
        #[test]
        fn what_the_standard_library_calls_local_is_never_public(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let local = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
            prop_assert!(!local || !is_public(v4.into()));
            prop_assert_eq!(is_public(v4.into()), is_public(v4.to_ipv6_mapped().into()));
        }
    }

    fn allowed(to: &str, addresses: &[&str], net: Option<&str>) -> Allowed {
        let pattern = match net {
            Some(net) => DestinationPattern::Net(net.parse().unwrap()),
            None => DestinationPattern::Any,
        };
        let rule = PolicyRule {
            name: "r".into(),
            clients: vec![],
            destinations: vec![pattern],
            ports: vec![],
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            action: Action::Allow,
        };
        Destinations::new(&[rule])
            .judge("app", Destination::parse(to).unwrap())
            .unwrap()
    }

    #[test]
    fn bad_answers_are_dropped_and_good_ones_kept_in_turn() {
        let name = allowed("db.example.com:5432", &[], None);
        let found = [
            "10.0.0.1",
            "8.8.8.8",
            "8.8.4.4",
            "::1",
            "2606:4700::1",
            "8.8.8.8",
        ]
        .map(ip);
        let checked = check(&name, &found, &Own::default(), BOTH).unwrap();
        assert_eq!(
            checked.addresses(),
            ["2606:4700::1", "8.8.8.8", "8.8.4.4"].map(ip)
        );
        assert_eq!(checked.port(), 5432);
        let bad = check(
            &name,
            &["10.0.0.1", "::ffff:127.0.0.1"].map(ip),
            &Own::default(),
            BOTH,
        );
        assert_eq!(bad.unwrap_err(), Refusal::AddressDenied);
    }

    #[test]
    fn a_family_without_fixed_address_is_dropped() {
        let name = allowed("db.example.com:5432", &[], None);
        let v4_only = Families {
            v4: true,
            v6: false,
        };
        let found = ["2606:4700::1", "8.8.8.8"].map(ip);
        let checked = check(&name, &found, &Own::default(), v4_only).unwrap();
        assert_eq!(checked.addresses(), [ip("8.8.8.8")]);
        assert_eq!(
            check(&name, &[ip("2606:4700::1")], &Own::default(), v4_only).unwrap_err(),
            Refusal::FamilyWithoutAddress
        );
    }

    #[test]
    fn special_addresses_need_a_rule_that_names_them() {
        let found = [ip("10.0.0.9")];
        let own = Own::default();
        assert!(
            check(
                &allowed("a.example.com:1", &["10.0.0.0/8"], None),
                &found,
                &own,
                BOTH
            )
            .is_ok()
        );
        assert!(
            check(
                &allowed("10.0.0.9:1", &[], Some("10.0.0.0/8")),
                &found,
                &own,
                BOTH
            )
            .is_ok()
        );
        assert!(check(&allowed("10.0.0.9:1", &[], None), &found, &own, BOTH).is_err());
    }

    #[test]
    fn our_own_addresses_need_addresses_and_our_doors_are_never_dialled() {
        let own = Own {
            addresses: ["10.0.0.9", "8.8.8.8"].map(ip).into(),
            doors: vec![
                "10.0.0.9:3128".parse().unwrap(),
                "0.0.0.0:9911".parse().unwrap(),
            ],
            ..Own::default()
        };
        let ours = [ip("10.0.0.9")];
        assert!(
            check(
                &allowed("10.0.0.9:1", &[], Some("10.0.0.0/8")),
                &ours,
                &own,
                BOTH
            )
            .is_err()
        );
        assert!(
            check(
                &allowed("10.0.0.9:1", &["10.0.0.9/32"], None),
                &ours,
                &own,
                BOTH
            )
            .is_ok()
        );
        assert!(
            check(
                &allowed("10.0.0.9:1", &[], Some("10.0.0.9/32")),
                &ours,
                &own,
                BOTH
            )
            .is_ok()
        );
        for port in [3128, 9911] {
            let to = format!("10.0.0.9:{port}");
            assert!(check(&allowed(&to, &["10.0.0.9/32"], None), &ours, &own, BOTH).is_err());
        }
        let everything = allowed("0.0.0.0:9911", &["0.0.0.0/0"], None);
        assert!(check(&everything, &[ip("0.0.0.0")], &own, BOTH).is_err());
        let public = allowed("a.example.com:1", &[], None);
        assert!(
            check(
                &public,
                &["8.8.8.8", "64:ff9b::8.8.8.8"].map(ip),
                &own,
                BOTH
            )
            .is_err()
        );
        let loopback = allowed("127.0.0.1:9911", &["127.0.0.0/8"], None);
        assert!(check(&loopback, &[ip("127.0.0.1")], &own, BOTH).is_err());
    }

    #[test]
    fn a_synthetic_address_is_never_dialled_whatever_a_rule_says() {
        let own = Own {
            synthetic: ["198.18.0.0/15".parse().unwrap()].into_iter().collect(),
            ..Own::default()
        };
        let name = allowed("a.example.com:1", &["198.18.0.0/15", "198.18.0.9/32"], None);
        for (own, passes) in [(own, false), (Own::default(), true)] {
            let checked = check(&name, &[ip("198.18.0.9")], &own, BOTH);
            assert_eq!(checked.is_ok(), passes);
        }
    }

    #[test]
    fn a_network_around_our_own_address_does_not_name_it() {
        let own = Own {
            addresses: ["10.0.0.9", "127.0.0.1"].map(ip).into(),
            doors: vec![],
            ..Own::default()
        };
        for (networks, to, passes) in [
            (&["10.0.0.0/8"][..], "10.0.0.8", true),
            (&["10.0.0.0/8"], "10.0.0.9", false),
            (&["10.0.0.0/8", "10.0.0.9/32"], "10.0.0.9", true),
            (&["127.0.0.0/8"], "127.0.0.1", true),
        ] {
            let name = allowed("a.example.com:22", networks, None);
            let checked = check(&name, &[ip(to)], &own, BOTH);
            assert_eq!(checked.is_ok(), passes, "{networks:?} {to}");
        }
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let found: Vec<_> = (0..200)
            .map(|n| IpAddr::V4(Ipv4Addr::new(8, 8, 8, n)))
            .collect();
        let checked = check(
            &allowed("a.example.com:1", &[], None),
            &found,
            &Own::default(),
            BOTH,
        )
        .unwrap();
        assert_eq!(checked.addresses().len(), ADDRESSES_MAX);
    }
}
