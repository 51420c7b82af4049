//! Which route serves a request: the host first (exact before wildcard before any), then the longest path prefix.
//!
//! The most specific host decides alone: a path that none of its routes has is not looked for under a wildcard, so
//! that a route for one host is never widened by one for all. A prefix ends at a segment: `/api` serves `/api` and
//! `/api/x`, not `/apix`; `/api/` serves what begins with it, not `/api`. The path must be canonical when it comes
//! here; nothing is decoded. A look-up does not allocate.
//!
//! Case counts, but not every upstream thinks so (Express does not): [`Routes::agrees`] tells whether it matters.

use std::collections::HashMap;

use crate::addr::Host;
use crate::config::typed::HostPattern;
use crate::outcome::Refusal;

/// The routes of one listener; a found route is named by its place in the configuration.
#[derive(Debug, Default)]
pub struct Routes {
    exact: HashMap<Host, Paths>,
    below: HashMap<Box<str>, Paths>,
    /// Labels of the longest name in `below`: the look-up tries no longer one.
    below_labels_max: usize,
    any: Paths,
}

/// Path prefixes, longest first, and the places of their routes.
#[derive(Debug, Default)]
struct Paths(Vec<(Box<str>, usize)>);

impl Routes {
    /// In the order of the configuration: hosts (none: any host) and path prefix. Of two routes for the same host and
    /// path the first counts.
    pub fn new(entries: impl IntoIterator<Item = (Vec<HostPattern>, String)>) -> Self {
        let mut routes = Self::default();
        for (place, (hosts, path)) in entries.into_iter().enumerate() {
            if hosts.is_empty() {
                routes.any.add(&path, place);
            }
            for host in hosts {
                match host {
                    HostPattern::Exact(host) => {
                        routes.exact.entry(host).or_default().add(&path, place);
                    }
                    HostPattern::Below(name) => {
                        let labels = name.split('.').count();
                        routes.below_labels_max = routes.below_labels_max.max(labels);
                        routes.below.entry(name).or_default().add(&path, place);
                    }
                }
            }
        }
        routes
    }

    /// The place of the route that serves `path` of `host`.
    ///
    /// # Errors
    /// [`Refusal::HostUnknown`] if no route has the host, [`Refusal::RouteUnknown`] if none of those has the path.
    pub fn find(&self, host: &Host, path: &str) -> Result<usize, Refusal> {
        let paths = self.paths(host);
        if paths.0.is_empty() {
            return Err(Refusal::HostUnknown);
        }
        paths.find(path).ok_or(Refusal::RouteUnknown)
    }

    /// Whether a reader to whom upper and lower case are the same comes from `path` of `host` to route `place` too. Of
    /// prefixes that only case tells apart any will do: who wrote both has an upstream that tells them apart.
    pub fn agrees(&self, host: &Host, path: &str, place: usize) -> bool {
        self.paths(host).find_any_case(path, place)
    }

    fn paths(&self, host: &Host) -> &Paths {
        self.exact
            .get(host)
            .or_else(|| self.wildcard(host.as_name()?))
            .unwrap_or(&self.any)
    }

    /// The longest `*.NAME` above `name`.
    fn wildcard(&self, name: &str) -> Option<&Paths> {
        if self.below.is_empty() {
            return None;
        }
        let mut labels = name.split('.').count();
        let mut rest = name;
        while let Some((_, above)) = rest.split_once('.') {
            (rest, labels) = (above, labels - 1);
            if labels > self.below_labels_max {
                continue;
            }
            if let Some(paths) = self.below.get(above) {
                return Some(paths);
            }
        }
        None
    }
}

impl Paths {
    fn add(&mut self, path: &str, place: usize) {
        if self.0.iter().all(|(known, _)| **known != *path) {
            let at = self
                .0
                .partition_point(|(known, _)| known.len() >= path.len());
            self.0.insert(at, (path.into(), place));
        }
    }

    fn find(&self, path: &str) -> Option<usize> {
        let serves = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| {
                prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            })
        };
        let found = self.0.iter().find(|(prefix, _)| serves(prefix));
        found.map(|(_, place)| *place)
    }

    /// Whether `place` is among the longest prefixes that serve `path`, whatever the case of either.
    fn find_any_case(&self, path: &str, place: usize) -> bool {
        let serves = |prefix: &str| {
            let path = path.as_bytes().split_at_checked(prefix.len());
            path.is_some_and(|(begin, rest)| {
                begin.eq_ignore_ascii_case(prefix.as_bytes())
                    && (prefix.ends_with('/') || rest.is_empty() || rest.starts_with(b"/"))
            })
        };
        let mut serving = self.0.iter().filter(|(prefix, _)| serves(prefix));
        let Some((longest, first)) = serving.next() else {
            return false;
        };
        let mut equals = serving.take_while(|(prefix, _)| prefix.len() == longest.len());
        *first == place || equals.any(|(_, other)| *other == place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(name: &str) -> HostPattern {
        HostPattern::Exact(Host::parse(name).unwrap())
    }

    fn below(name: &str) -> HostPattern {
        HostPattern::Below(name.into())
    }

    fn find(routes: &Routes, host: &str, path: &str) -> Result<usize, Refusal> {
        routes.find(&Host::parse(host).unwrap(), path)
    }

    #[test]
    fn the_most_specific_host_decides_alone() {
        let routes = Routes::new([
            (vec![], "/any/".to_owned()),
            (vec![below("example.com")], "/wild".to_owned()),
            (vec![below("b.example.com")], "/".to_owned()),
            (
                vec![exact("a.example.com"), exact("192.0.2.1")],
                "/exact".to_owned(),
            ),
        ]);
        assert_eq!(find(&routes, "a.example.com", "/exact"), Ok(3));
        assert_eq!(find(&routes, "A.Example.com.", "/exact/x"), Ok(3));
        assert_eq!(find(&routes, "192.0.2.1", "/exact"), Ok(3));
        assert_eq!(
            find(&routes, "a.example.com", "/wild"),
            Err(Refusal::RouteUnknown)
        );
        assert_eq!(find(&routes, "c.example.com", "/wild"), Ok(1));
        assert_eq!(find(&routes, "x.y.z.example.com", "/wild"), Ok(1));
        assert_eq!(find(&routes, "x.y.b.example.com", "/wild"), Ok(2));
        assert_eq!(find(&routes, "b.example.com", "/wild"), Ok(1));
        assert_eq!(find(&routes, "example.com", "/any/"), Ok(0));
        assert_eq!(
            find(&routes, "example.com", "/wild"),
            Err(Refusal::RouteUnknown)
        );
        assert_eq!(find(&routes, "notexample.com", "/any/x"), Ok(0));
    }

    #[test]
    fn a_host_that_nobody_serves_is_told_from_a_path() {
        let routes = Routes::new([(vec![exact("a.example")], "/api/".to_owned())]);
        assert_eq!(
            find(&routes, "b.example", "/api/"),
            Err(Refusal::HostUnknown)
        );
        assert_eq!(find(&routes, "a.example", "/"), Err(Refusal::RouteUnknown));
        assert_eq!(
            find(&Routes::default(), "a.example", "/"),
            Err(Refusal::HostUnknown)
        );
    }

    #[test]
    fn a_prefix_ends_at_a_segment_and_the_longest_wins() {
        let paths = ["/", "/api", "/api/v2", "/hooks/"];
        let routes = Routes::new(paths.map(|p| (vec![], p.to_owned())));
        for (path, place) in [
            ("/", 0),
            ("/x", 0),
            ("/api", 1),
            ("/api/", 1),
            ("/api/x", 1),
            ("/apix", 0),
            ("/api/v2", 2),
            ("/api/v2/x", 2),
            ("/api/v20", 1),
            ("/hooks", 0),
            ("/hooks/", 3),
            ("/hooks/x", 3),
            ("/Hooks/x", 0),
        ] {
            assert_eq!(find(&routes, "any.example", path), Ok(place), "{path}");
        }
        assert_eq!(
            find(&routes, "any.example", "*"),
            Err(Refusal::RouteUnknown)
        );
    }

    #[test]
    fn a_reader_without_case_is_foreseen() {
        let paths = ["/", "/api", "/Hooks/", "/x/", "/X/"];
        let routes = Routes::new(paths.map(|p| (vec![], p.to_owned())));
        let host = Host::parse("any.example").unwrap();
        for (path, agrees) in [
            ("/", true),
            ("/API!", true),
            ("/api/v", true),
            ("/api/V", true),
            ("/API", false),
            ("/Api/x", false),
            ("/hooks/", false),
            ("/Hooks/A", true),
            ("/x/a", true),
            ("/X/a", true),
        ] {
            let place = routes.find(&host, path).unwrap();
            assert_eq!(routes.agrees(&host, path, place), agrees, "{path}");
        }
    }

    #[test]
    fn the_first_of_two_equal_routes_counts() {
        let routes = Routes::new([(vec![], "/".to_owned()), (vec![], "/".to_owned())]);
        assert_eq!(find(&routes, "a.example", "/"), Ok(0));
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]", 1..4).prop_map(|labels| labels.join("."))
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]?", 1..4).prop_map(|parts| format!("/{}", parts.join("/")))
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_route(
            entries in prop::collection::vec((prop::option::of((any::<bool>(), name())), path()), 0..12),
            host in name(),
            asked in path(),
        ) {
            let patterns = entries.iter().map(|(host, path)| {
                let hosts = host.iter().map(|(wild, n)| if *wild { below(n) } else { exact(n) });
                (hosts.collect(), path.clone())
            });
            // How specific the host is, then the path; the earliest of the best.
            let mut best: Option<(usize, Option<(usize, usize)>)> = None;
            for (place, (pattern, prefix)) in entries.iter().enumerate() {
                let weight = match pattern {
                    None => 1,
                    Some((true, n)) if host.ends_with(&format!(".{n}")) => 2 + n.len(),
                    Some((false, n)) if host == *n => 1000,
                    Some(_) => continue,
                };
                let whole = format!("{asked}/");
                let slashed = if prefix.ends_with('/') { prefix.clone() } else { format!("{prefix}/") };
                let serves = asked.starts_with(&slashed) || (!prefix.ends_with('/') && whole.starts_with(&slashed));
                let path = serves.then_some((prefix.len(), place));
                best = Some(match best {
                    Some((w, p)) if w > weight => (w, p),
                    Some((w, Some((len, at)))) if w == weight && path.is_none_or(|(l, _)| l <= len) => (w, Some((len, at))),
                    Some((w, None)) if w == weight => (w, path),
                    _ => (weight, path),
                });
            }
            let expected = match best {
                None => Err(Refusal::HostUnknown),
                Some((_, None)) => Err(Refusal::RouteUnknown),
                Some((_, Some((_, place)))) => Ok(place),
            };
            prop_assert_eq!(find(&Routes::new(patterns), &host, &asked), expected);
        }
    }
}
