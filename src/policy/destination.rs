//! Which places may be named, by whom: decided before any name is resolved.
//!
//! Rules are asked in the order of the configuration and the first that matches decides. Without any rule every public
//! destination is allowed; with rules, what none of them matches is denied. Names that mean something only on this
//! machine or in this network are matched by no `*`. Which addresses may be dialled is decided in `address`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Destination, Host, PrefixSet};
use crate::config::typed::{Action, DestinationPattern, PolicyRule};
use crate::outcome::Refusal;

/// Denied unless a rule lists the port: nobody sends mail from the address that customers trust.
const SMTP_PORT: u16 = 25;
/// Every port but [`SMTP_PORT`].
const PORTS_ALL: [(u16, u16); 1] = [(1, u16::MAX)];
const PORTS_BY_DEFAULT: [(u16, u16); 2] = [(1, SMTP_PORT - 1), (SMTP_PORT + 1, u16::MAX)];
/// Name services of cloud machines: only a rule with exactly this name reaches them.
const METADATA_NAMES: [&str; 2] = ["instance-data", "metadata.google.internal"];
/// Zones that no public name lives in (RFC 6761 section 6.3, RFC 6762 section 3, ICANN's `internal`).
const LOCAL_ZONES: [&str; 3] = ["internal", "local", "localhost"];

/// The egress rules, compiled. The default allows every public destination.
#[derive(Debug, Default)]
pub struct Destinations {
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    /// Empty: every client.
    clients: Box<[Box<str>]>,
    patterns: Box<[DestinationPattern]>,
    /// Empty: every port but [`SMTP_PORT`].
    ports: Box<[(u16, u16)]>,
    special: Arc<Special>,
    action: Action,
}

/// Addresses that a rule allows though they are special-purpose.
#[derive(Debug, Default)]
struct Special {
    networks: PrefixSet,
    /// Those of them that are given as themselves.
    exact: HashSet<IpAddr>,
}

/// Proof that a destination may be resolved and dialled, under the conditions of the rule that said so.
///
/// ```compile_fail,E0063
/// let allowed = tollgate::policy::destination::Allowed {};
/// ```
#[derive(Clone, Debug)]
pub struct Allowed {
    destination: Destination,
    rule: Arc<str>,
    special: Arc<Special>,
    literal: Literal,
    would_deny: bool,
    /// Networks that rules before it deny.
    denied: Vec<IpNet>,
}

/// How the rule names an address that was asked for as such.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Literal {
    /// This very address: it may be special-purpose, and our own.
    Exact,
    /// A network that holds it: it may be special-purpose.
    Network,
    /// Not at all, or a name was asked for.
    No,
}

impl Destinations {
    /// Compiles `[[egress.policy]]`, in its order.
    pub fn new(rules: &[PolicyRule]) -> Self {
        let compile = |rule: &PolicyRule| Rule {
            name: rule.name.as_str().into(),
            clients: rule.clients.iter().map(|c| c.as_str().into()).collect(),
            patterns: rule.destinations.clone().into(),
            ports: rule.ports.clone().into(),
            special: Arc::new(Special::new(&rule.addresses)),
            action: rule.action,
        };
        Self {
            rules: rules.iter().map(compile).collect(),
        }
    }

    /// The rule of one named forward: `to` and nothing else, at `addresses` too if they are special-purpose.
    pub fn only(name: &str, to: &Destination, addresses: &[IpNet]) -> Self {
        let rule = Rule {
            name: name.into(),
            clients: Box::default(),
            patterns: [DestinationPattern::Exact(to.host.clone())].into(),
            ports: [(to.port, to.port)].into(),
            special: Arc::new(Special::new(addresses)),
            action: Action::Allow,
        };
        Self {
            rules: [rule].into(),
        }
    }

    /// The rule that decides about `destination`, and what it says; `None`: no rule matches, or there is none.
    pub fn deciding(&self, client: &str, destination: &Destination) -> Option<(&str, Action)> {
        let mut rules = self.rules.iter();
        let rule = rules.find(|rule| rule.matching(client, destination).is_some())?;
        Some((&rule.name, rule.action))
    }

    /// Judges `destination` for the egress client of that name.
    pub fn judge(&self, client: &str, destination: Destination) -> Result<Allowed, Refusal> {
        if self.rules.is_empty() {
            return open(destination);
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if let Some(pattern) = rule.matching(client, &destination) {
                let denied = self.denied_before(at, client, destination.port);
                return Ok(Allowed {
                    denied,
                    ..rule.decide(pattern, destination)?
                });
            }
        }
        Err(Refusal::DestinationDenied)
    }

    /// The networks that the rules before number `at` deny: a name may not lead where an address may not.
    fn denied_before(&self, at: usize, client: &str, port: u16) -> Vec<IpNet> {
        let denying = |rule: &&Rule| {
            rule.action == Action::Deny && rule.is_for(client) && rule.has_port(port)
        };
        let rules = self.rules.iter().take(at).filter(denying);
        let nets = rules
            .flat_map(|rule| &rule.patterns)
            .filter_map(|pattern| match pattern {
                DestinationPattern::Net(net) => Some(*net),
                _ => None,
            });
        nets.collect()
    }
}

impl Destinations {
    /// Whether some port of `host` could be allowed to the egress client of that name.
    pub fn could_allow(&self, client: &str, host: &Host) -> bool {
        if self.rules.is_empty() {
            return matches(&DestinationPattern::Any, host);
        }
        // What no earlier rule has denied.
        let mut left = vec![(1, u16::MAX)];
        for rule in &self.rules {
            if !rule.is_for(client) || !rule.patterns.iter().any(|p| rule.matches(p, host)) {
                continue;
            }
            if rule.action != Action::Deny {
                if left.iter().any(|range| rule.has_port_within(*range)) {
                    return true;
                }
                continue; // a later rule may allow other ports
            }
            for ports in rule.ranges() {
                left = left
                    .iter()
                    .flat_map(|range| without(*range, *ports))
                    .collect();
            }
        }
        false
    }

    /// The names that stand in a rule as themselves, in the order of the rules.
    pub fn exact_names(&self) -> impl Iterator<Item = &str> {
        let patterns = self.rules.iter().flat_map(|rule| &rule.patterns);
        patterns.filter_map(|pattern| match pattern {
            DestinationPattern::Exact(host) => host.as_name(),
            _ => None,
        })
    }
}

impl Special {
    fn new(networks: &[IpNet]) -> Self {
        let exact = networks
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| net.addr().to_canonical());
        Self {
            networks: networks.iter().copied().collect(),
            exact: exact.collect(),
        }
    }
}

impl Rule {
    fn matching(&self, client: &str, destination: &Destination) -> Option<&DestinationPattern> {
        if !self.is_for(client) || !self.has_port(destination.port) {
            return None;
        }
        self.patterns
            .iter()
            .find(|pattern| self.matches(pattern, &destination.host))
    }

    /// What is denied is denied in the widest sense: local names are below their zone, and any name is one.
    fn matches(&self, pattern: &DestinationPattern, host: &Host) -> bool {
        match (pattern, host) {
            (DestinationPattern::Any, _) if self.action == Action::Deny => true,
            (DestinationPattern::Below(zone), Host::Name(name)) if self.action == Action::Deny => {
                below(name, zone)
            }
            _ => matches(pattern, host),
        }
    }

    fn is_for(&self, client: &str) -> bool {
        self.clients.is_empty() || self.clients.iter().any(|c| **c == *client)
    }

    /// The ports it is about.
    fn ranges(&self) -> &[(u16, u16)] {
        match (self.ports.is_empty(), self.action) {
            (false, _) => &self.ports,
            (true, Action::Deny) => &PORTS_ALL,
            (true, Action::Allow | Action::Report) => &PORTS_BY_DEFAULT,
        }
    }

    fn has_port_within(&self, (first, last): (u16, u16)) -> bool {
        let mut ranges = self.ranges().iter();
        ranges.any(|(low, high)| *low <= last && first <= *high)
    }

    fn has_port(&self, port: u16) -> bool {
        port != 0 && self.has_port_within((port, port))
    }

    fn decide(
        &self,
        pattern: &DestinationPattern,
        destination: Destination,
    ) -> Result<Allowed, Refusal> {
        if self.action == Action::Deny {
            return Err(Refusal::DestinationDenied);
        }
        let literal = match (pattern, &destination.host) {
            (_, Host::Name(_)) => Literal::No,
            (DestinationPattern::Exact(_), _) => Literal::Exact,
            (DestinationPattern::Net(net), _) if net.prefix_len() == net.max_prefix_len() => {
                Literal::Exact
            }
            (DestinationPattern::Net(_), _) => Literal::Network,
            (DestinationPattern::Any | DestinationPattern::Below(_), _) => Literal::No,
        };
        Ok(Allowed {
            literal,
            destination,
            rule: Arc::clone(&self.name),
            special: Arc::clone(&self.special),
            would_deny: self.action == Action::Report,
            denied: Vec::new(),
        })
    }
}

impl Allowed {
    /// What was asked for.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Whether an earlier rule denies `address`.
    pub fn denies(&self, address: IpAddr) -> bool {
        self.denied.iter().any(|net| holds(net, address))
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Whether the rule allows `address` even if it is special-purpose.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.special.networks.contains(address)
    }

    /// Whether the rule allows this very address, not just a network around it.
    pub fn names(&self, address: IpAddr) -> bool {
        self.special.exact.contains(&address)
    }

    /// How the rule names the address that was asked for.
    pub fn literal(&self) -> Literal {
        self.literal
    }

    /// Whether the rule only reports that it would have denied.
    pub fn would_deny(&self) -> bool {
        self.would_deny
    }
}

/// What is allowed where no rule is configured.
fn open(destination: Destination) -> Result<Allowed, Refusal> {
    if !port_by_default(destination.port) || !matches(&DestinationPattern::Any, &destination.host) {
        return Err(Refusal::DestinationDenied);
    }
    Ok(Allowed {
        destination,
        rule: "default".into(),
        special: Arc::default(),
        literal: Literal::No,
        would_deny: false,
        denied: Vec::new(),
    })
}

/// What is left of one range when another is taken out of it.
fn without((first, last): (u16, u16), (low, high): (u16, u16)) -> Vec<(u16, u16)> {
    if last < low || high < first {
        return vec![(first, last)];
    }
    let mut left = Vec::new();
    if first < low {
        left.push((first, low.saturating_sub(1)));
    }
    if high < last {
        left.push((high.saturating_add(1), last));
    }
    left
}

fn port_by_default(port: u16) -> bool {
    port != 0 && port != SMTP_PORT
}

fn matches(pattern: &DestinationPattern, host: &Host) -> bool {
    match (pattern, host) {
        (DestinationPattern::Any, Host::Name(name)) => !is_local(name),
        (DestinationPattern::Any, Host::Address(_)) => true,
        (DestinationPattern::Below(zone), Host::Name(name)) => {
            below(name, zone) && !METADATA_NAMES.contains(&&**name)
        }
        (DestinationPattern::Below(_), Host::Address(_)) => false,
        (DestinationPattern::Exact(exact), host) => exact == host,
        (DestinationPattern::Net(net), Host::Address(address)) => holds(net, *address),
        (DestinationPattern::Net(_), Host::Name(_)) => false,
    }
}

fn holds(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address.to_canonical())
}

fn below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone)
        .and_then(|rest| rest.strip_suffix('.'))
        .is_some_and(|rest| !rest.is_empty())
}

/// A name of this machine or network: one label only, or in one of [`LOCAL_ZONES`].
fn is_local(name: &str) -> bool {
    !name.contains('.') || LOCAL_ZONES.iter().any(|zone| below(name, zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, destinations: Vec<DestinationPattern>, action: Action) -> PolicyRule {
        PolicyRule {
            name: name.into(),
            clients: vec![],
            destinations,
            ports: vec![],
            addresses: vec![],
            action,
        }
    }

    fn to(text: &str) -> Destination {
        Destination::parse(text).unwrap()
    }

    fn exact(text: &str) -> DestinationPattern {
        DestinationPattern::Exact(Host::parse(text).unwrap())
    }

    #[test]
    fn a_denied_network_is_denied_to_names_and_a_deny_is_meant_in_the_widest_sense() {
        let net = DestinationPattern::Net("10.0.5.0/24".parse().unwrap());
        let zone = || DestinationPattern::Below("corp.example".into());
        let judged = Destinations::new(&[
            rule("secret", vec![net], Action::Deny),
            rule("corp", vec![zone()], Action::Allow),
        ]);
        let allowed = judged.judge("app", to("db.corp.example:5432")).unwrap();
        assert!(allowed.denies("10.0.5.9".parse().unwrap()));
        assert!(allowed.denies("::ffff:10.0.5.9".parse().unwrap()));
        assert!(!allowed.denies("10.0.6.9".parse().unwrap()));
        let mut mail = rule("mail", vec![exact("mail.corp.example")], Action::Allow);
        mail.ports = vec![(25, 25)];
        let local = rule("local", vec![exact("localhost")], Action::Allow);
        for denied in [zone(), DestinationPattern::Any] {
            let rules = [rule("no", vec![denied], Action::Deny), mail.clone()];
            let to = to("mail.corp.example:25");
            assert!(Destinations::new(&rules).judge("app", to).is_err());
        }
        let rules = [
            rule("no", vec![DestinationPattern::Any], Action::Deny),
            local,
        ];
        let judged = Destinations::new(&rules);
        assert!(judged.judge("app", to("localhost:80")).is_err());
        assert!(!judged.could_allow("app", &Host::parse("localhost").unwrap()));
    }

    #[test]
    fn without_rules_public_names_are_allowed_but_not_port_25() {
        let open = Destinations::default();
        for text in ["db.example.com:5432", "192.0.2.1:443", "[2001:db8::1]:443"] {
            let allowed = open.judge("app", to(text)).unwrap();
            assert_eq!(allowed.rule(), "default");
            assert!(allowed.literal() == Literal::No && !allowed.would_deny());
        }
        assert_eq!(
            open.judge("app", to("mail.example.com:25")).unwrap_err(),
            Refusal::DestinationDenied
        );
        let port_0 = Destination {
            host: Host::parse("a.example").unwrap(),
            port: 0,
        };
        assert!(open.judge("app", port_0).is_err());
    }

    const LOCAL: [&str; 9] = [
        "localhost",
        "a.localhost",
        "printer.local",
        "db.internal",
        "metadata.google.internal",
        "instance-data",
        "postgres",
        "LOCALHOST.",
        "kubernetes.default.svc.cluster.local",
    ];

    #[test]
    fn local_names_need_a_rule_that_names_them() {
        let any = Destinations::new(&[rule("any", vec![DestinationPattern::Any], Action::Allow)]);
        for name in LOCAL {
            let asked = to(&format!("{name}:443"));
            assert!(
                Destinations::default().judge("app", asked.clone()).is_err(),
                "{name}"
            );
            assert!(any.judge("app", asked.clone()).is_err(), "{name}");
            let named = Destinations::new(&[rule("named", vec![exact(name)], Action::Allow)]);
            assert!(named.judge("app", asked).is_ok(), "{name}");
        }
        assert!(any.judge("app", to("locals.example.com:443")).is_ok());
        assert!(any.judge("app", to("mylocal.example:443")).is_ok());
    }

    #[test]
    fn a_zone_may_be_local_but_never_reaches_metadata() {
        let zone = |zone: &str| {
            Destinations::new(&[rule(
                "zone",
                vec![DestinationPattern::Below(zone.into())],
                Action::Allow,
            )])
        };
        assert!(
            zone("corp.internal")
                .judge("app", to("db.corp.internal:5432"))
                .is_ok()
        );
        assert!(
            zone("internal")
                .judge("app", to("metadata.google.internal:80"))
                .is_err()
        );
        assert!(
            zone("example.com")
                .judge("app", to("a.b.example.com:80"))
                .is_ok()
        );
        for other in [
            "example.com:80",
            "badexample.com:80",
            "a.example.com.evil.test:80",
        ] {
            assert!(
                zone("example.com").judge("app", to(other)).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = Destinations::new(&[
            rule("no", vec![exact("bad.example.com")], Action::Deny),
            rule("watch", vec![exact("odd.example.com")], Action::Report),
            rule(
                "zone",
                vec![DestinationPattern::Below("example.com".into())],
                Action::Allow,
            ),
            rule("never", vec![DestinationPattern::Any], Action::Deny),
        ]);
        assert!(rules.judge("app", to("bad.example.com:443")).is_err());
        assert!(rules.judge("app", to("BAD.example.com.:443")).is_err());
        assert!(
            rules
                .judge("app", to("odd.example.com:443"))
                .unwrap()
                .would_deny()
        );
        assert_eq!(
            rules.judge("app", to("db.example.com:443")).unwrap().rule(),
            "zone"
        );
        assert!(rules.judge("app", to("other.test:443")).is_err());
    }

    #[test]
    fn clients_and_ports_are_part_of_a_rule() {
        let rules = Destinations::new(&[PolicyRule {
            clients: vec!["app".into()],
            ports: vec![(443, 443), (5432, 5439)],
            ..rule("db", vec![DestinationPattern::Any], Action::Allow)
        }]);
        assert!(rules.judge("app", to("db.example.com:5435")).is_ok());
        assert!(rules.judge("app", to("db.example.com:5440")).is_err());
        assert!(rules.judge("other", to("db.example.com:443")).is_err());
    }

    #[test]
    fn literal_addresses_match_networks_and_no_zone() {
        let net = |text: &str| DestinationPattern::Net(text.parse().unwrap());
        let rules = Destinations::new(&[
            rule("net", vec![net("10.1.0.0/16")], Action::Allow),
            rule(
                "one",
                vec![net("10.3.0.1/32"), exact("10.3.0.2")],
                Action::Allow,
            ),
            rule("any", vec![DestinationPattern::Any], Action::Allow),
        ]);
        for (text, literal) in [
            ("10.1.2.3:5432", Literal::Network),
            ("[::ffff:10.1.2.3]:5432", Literal::Network),
            ("10.3.0.1:5432", Literal::Exact),
            ("10.3.0.2:5432", Literal::Exact),
            ("10.2.2.3:5432", Literal::No),
            ("db.example.com:5432", Literal::No),
        ] {
            let allowed = rules.judge("app", to(text)).unwrap();
            assert_eq!(allowed.literal(), literal, "{text}");
        }
    }

    #[test]
    fn a_forward_allows_its_own_destination_only() {
        let only = Destinations::only("db", &to("db.example.com:25"), &[]);
        assert_eq!(
            only.judge("db", to("db.example.com:25")).unwrap().rule(),
            "db"
        );
        assert!(only.judge("db", to("db.example.com:26")).is_err());
        assert!(only.judge("db", to("x.example.com:25")).is_err());
        let literal = Destinations::only("db", &to("127.0.0.1:5432"), &[]);
        let allowed = literal.judge("db", to("127.0.0.1:5432")).unwrap();
        assert_eq!(allowed.literal(), Literal::Exact);
    }

    #[test]
    fn a_name_is_known_if_some_port_of_it_could_be_allowed() {
        let on = |ports: &[(u16, u16)], mut rule: PolicyRule| {
            rule.ports = ports.to_vec();
            rule
        };
        let name = || vec![exact("a.example.com")];
        let all = || vec![DestinationPattern::Any];
        let for_jobs = || PolicyRule {
            clients: vec!["jobs".into()],
            ..rule("x", name(), Action::Allow)
        };
        let (allow, deny, report) = (Action::Allow, Action::Deny, Action::Report);
        for (rules, could) in [
            (vec![], true),
            (vec![rule("x", vec![exact("b.example.com")], allow)], false),
            (vec![rule("x", name(), report)], true),
            (vec![for_jobs()], false),
            (
                vec![rule("x", name(), deny), rule("y", all(), allow)],
                false,
            ),
            (
                vec![
                    on(&[(1, 65535)], rule("x", name(), deny)),
                    rule("y", all(), allow),
                ],
                false,
            ),
            (
                vec![
                    on(&[(443, 443)], rule("x", name(), deny)),
                    on(&[(443, 443)], rule("y", all(), allow)),
                ],
                false,
            ),
            (
                vec![
                    on(&[(443, 443)], rule("x", name(), deny)),
                    on(&[(443, 444)], rule("y", all(), allow)),
                ],
                true,
            ),
            (
                vec![
                    on(&[(1, 300)], rule("x", name(), deny)),
                    on(&[(200, 65535)], rule("z", name(), deny)),
                    rule("y", all(), allow),
                ],
                false,
            ),
            (
                vec![
                    on(&[(2, 65534)], rule("x", name(), deny)),
                    on(&[(65535, 65535)], rule("y", all(), allow)),
                ],
                true,
            ),
        ] {
            let rules_said = format!("{rules:?}");
            let destinations = Destinations::new(&rules);
            let host = Host::parse("a.example.com").unwrap();
            let slow = (1..=u16::MAX).any(|port| {
                let destination = Destination {
                    host: host.clone(),
                    port,
                };
                destinations.judge("app", destination).is_ok()
            });
            assert_eq!(destinations.could_allow("app", &host), slow, "{rules_said}");
            assert_eq!(could, slow, "{rules_said}");
        }
    }
}
