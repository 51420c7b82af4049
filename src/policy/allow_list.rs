//! Who may connect or ask: an allow-list, a deny-list, and deny beats allow.

use std::net::IpAddr;

use crate::addr::PrefixSet;
use crate::outcome::Refusal;

/// The lists of one listener or one route, compiled.
#[derive(Debug, Default)]
pub struct AllowList {
    /// `None`: everyone.
    allow: Option<PrefixSet>,
    deny: PrefixSet,
}

/// Proof that a client address was judged: the canonical one, used by limit, log and forwarded headers. Only
/// [`AllowList::admit`] makes one:
///
/// ```compile_fail,E0423
/// let client = tollgate::policy::allow_list::Client(std::net::Ipv4Addr::LOCALHOST.into());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Client(IpAddr);

impl AllowList {
    /// `allow` of `None` lets everyone in whom `deny` does not name.
    pub fn new(allow: Option<PrefixSet>, deny: PrefixSet) -> Self {
        Self { allow, deny }
    }

    /// Judges a client address; folds IPv4-mapped IPv6.
    pub fn admit(&self, address: IpAddr) -> Result<Client, Refusal> {
        let address = address.to_canonical();
        let listed = self.allow.as_ref().is_none_or(|set| set.contains(address));
        if listed && !self.deny.contains(address) {
            Ok(Client(address))
        } else {
            Err(Refusal::ClientDenied)
        }
    }
}

impl Client {
    /// The canonical client address.
    pub fn address(self) -> IpAddr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> PrefixSet {
        nets.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn deny_beats_allow_and_no_list_means_everyone() {
        let list = AllowList::new(Some(set(&["10.0.0.0/8"])), set(&["10.9.0.0/16"]));
        assert!(list.admit("10.1.1.1".parse().unwrap()).is_ok());
        assert!(list.admit("::ffff:10.1.1.1".parse().unwrap()).is_ok());
        assert_eq!(
            list.admit("10.9.1.1".parse().unwrap()),
            Err(Refusal::ClientDenied)
        );
        assert_eq!(
            list.admit("11.1.1.1".parse().unwrap()),
            Err(Refusal::ClientDenied)
        );
        assert!(
            AllowList::default()
                .admit("192.0.2.1".parse().unwrap())
                .is_ok()
        );
        assert!(
            AllowList::new(Some(set(&[])), set(&[]))
                .admit("192.0.2.1".parse().unwrap())
                .is_err()
        );
    }
}
