//! When to order again: in the window that the certificate authority suggests, or at two thirds of the life.
//!
//! Pure: seconds since 1970 and a drawn number in, seconds out. The number spreads replicas and names, so that neither
//! the certificate authority nor a lock sees them all at once.

use std::time::Duration;

use serde::Deserialize;

/// The window in which a certificate authority wants to be asked (RFC 9773 section 4.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Window {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// The document that holds it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RenewalInfo {
    suggested_window: Suggested,
    #[serde(rename = "explanationURL")]
    pub(super) explanation: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Suggested {
    start: String,
    end: String,
}

/// After the first failure; each further one multiplies it.
const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
const BACK_OFF_FACTOR: u32 = 5;
/// Let's Encrypt bears five failed validations an hour, and one of them is ours to spend.
const BACK_OFF_MAX: Duration = Duration::from_secs(3600);
/// After it came, before it is replaced.
const EARLY_SECONDS: i64 = 3600;
/// Between two looks at a suggested window (RFC 9773 section 4.3.2 and 4.3.3).
pub(super) const SUGGESTION_AGE: Duration = Duration::from_secs(6 * 3600);
const SUGGESTION_AGE_MIN: Duration = Duration::from_secs(60);
const SUGGESTION_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

impl RenewalInfo {
    /// `None` if it is none, or ends before it begins.
    pub(super) fn window(&self) -> Option<Window> {
        let second = |text: &str| text.parse::<jiff::Timestamp>().ok().map(|t| t.as_second());
        let window = Window {
            start: second(&self.suggested_window.start)?,
            end: second(&self.suggested_window.end)?,
        };
        (window.start < window.end).then_some(window)
    }
}

/// At two thirds of the life, or up to a twenty-fourth of the life later.
pub(super) fn by_life(from: i64, not_after: i64, drawn: u64) -> i64 {
    let life = not_after.saturating_sub(from).max(0);
    let from = not_after.saturating_sub(life / 3);
    from.saturating_add(part(life / 24, drawn))
}

/// Somewhere in the window, but while a tenth of the life is still left; and an hour after `from` at the earliest, sooner
/// for a short life: a certificate authority whose windows always lie behind is not asked for ever anew.
pub(super) fn by_window(window: Window, from: i64, not_after: i64, drawn: u64) -> i64 {
    let at = window
        .start
        .saturating_add(part(window.end.saturating_sub(window.start), drawn));
    let life = not_after.saturating_sub(from).max(0);
    let early = from.saturating_add(EARLY_SECONDS.min(life / 24));
    at.min(not_after.saturating_sub(life / 10)).max(early)
}

/// How long to wait after so many failures in a row, give or take a tenth; at least what is asked for.
pub(super) fn back_off(failures: u32, asked: Option<Duration>, drawn: u64) -> Duration {
    let times = BACK_OFF_FACTOR.saturating_pow(failures.saturating_sub(1));
    let wait = BACK_OFF_FIRST.saturating_mul(times).min(BACK_OFF_MAX);
    let tenth = u64::try_from(wait.as_millis() / 10).unwrap_or_default();
    let later = Duration::from_millis(drawn % (tenth + 1));
    wait.max(asked.unwrap_or_default()) + later
}

/// When to look at the window again, given what the answer asked for.
pub(super) fn suggestion_age(asked: Option<Duration>) -> Duration {
    asked
        .unwrap_or(SUGGESTION_AGE)
        .clamp(SUGGESTION_AGE_MIN, SUGGESTION_AGE_MAX)
}

fn part(whole: i64, drawn: u64) -> i64 {
    let whole = u64::try_from(whole).unwrap_or_default();
    i64::try_from(drawn % (whole + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;

    proptest! {
        #[test]
        fn there_is_always_time_left(life in 60..400 * DAY, start in -DAY..500 * DAY, length in 1..90 * DAY, drawn: u64) {
            let at = by_life(0, life, drawn);
            prop_assert!(at >= life * 2 / 3 && at <= life * 3 / 4, "{at} of {life}");
            let window = Window { start, end: start + length };
            let at = by_window(window, 0, life, drawn);
            prop_assert!(at <= life - life / 10 && at >= (life / 24).min(3600));
        }

        #[test]
        fn failures_are_spaced(failures in 1u32..1000, drawn: u64) {
            let wait = back_off(failures, None, drawn);
            prop_assert!(wait >= BACK_OFF_FIRST && wait <= BACK_OFF_MAX * 11 / 10);
            prop_assert!(back_off(failures, Some(2 * BACK_OFF_MAX), drawn) >= 2 * BACK_OFF_MAX);
        }
    }

    #[test]
    fn a_window_that_lies_behind_means_now() {
        let window = Window { start: 10, end: 20 };
        assert_eq!(by_window(window, 0, 90 * DAY, 99), EARLY_SECONDS);
        assert_eq!(by_window(window, -DAY, 90 * DAY, 98), 20);
        let text = r#"{"suggestedWindow":{"start":"2026-11-24T00:00:00Z","end":"2026-11-25T00:00:00Z"},"explanationURL":"https://ca.example/why"}"#;
        let info: RenewalInfo = serde_json::from_str(text).unwrap();
        let window = info.window().unwrap();
        assert_eq!(window.end - window.start, DAY);
        let turned = text.replace("11-24", "11-26");
        let info: RenewalInfo = serde_json::from_str(&turned).unwrap();
        assert_eq!(info.window(), None);
    }

    #[test]
    fn the_first_hour_has_five_attempts() {
        let mut at = Duration::ZERO;
        let mut attempts = 1;
        for failures in 1.. {
            at += back_off(failures, None, 0);
            if at > Duration::from_secs(3600) {
                break;
            }
            attempts += 1;
        }
        assert_eq!(attempts, 5);
        assert_eq!(suggestion_age(Some(Duration::ZERO)), SUGGESTION_AGE_MIN);
        assert_eq!(suggestion_age(None), SUGGESTION_AGE);
    }
}
