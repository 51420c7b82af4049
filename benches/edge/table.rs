//! What was measured, as a table.

use crate::load::Served;
use crate::sides::Kind;

/// One side's rounds.
pub(crate) struct Column {
    name: String,
    /// CPU per unit; `None` for a round with errors, which is in no statistic.
    values: Vec<Option<f64>>,
    rates: Vec<f64>,
    errors: u64,
}

pub(crate) struct Table<'a> {
    pub(crate) what: &'a str,
    pub(crate) unit: &'static str,
    /// The peer first: ratios are to it.
    pub(crate) columns: Vec<Column>,
}

impl Column {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            values: Vec::new(),
            rates: Vec::new(),
            errors: 0,
        }
    }

    pub(crate) fn add(&mut self, value: f64, served: Served) {
        let clean = served.errors == 0 && served.units > 0.0;
        self.values.push(clean.then_some(value));
        self.rates.push(served.units / served.seconds);
        self.errors += served.errors;
    }

    /// Its values with those of `other`, round by round.
    fn beside(&self, other: &Self) -> impl Iterator<Item = (f64, f64)> {
        let both = self.values.iter().zip(&other.values);
        both.filter_map(|(own, others)| (*own).zip(*others))
    }

    /// How many, and in how many rounds that do not count for it.
    fn errors(&self) -> String {
        match self.values.iter().filter(|value| value.is_none()).count() {
            0 => self.errors.to_string(),
            bad => format!("{} in {bad} bad rounds", self.errors),
        }
    }
}

impl Table<'_> {
    /// Prints it; whether nothing went wrong.
    pub(crate) fn print(&self) -> bool {
        let Some(peer) = self.columns.first() else {
            return false;
        };
        println!("{}", self.what);
        println!(
            "  {:18} {:>13} {:>17} {:>24} {:>24} {:>9} {:>6}",
            "side",
            self.unit,
            "min-max",
            "ratio [quartiles]",
            "difference [quartiles]",
            "units/s",
            "errors"
        );
        for column in &self.columns {
            let pairs = || column.beside(peer);
            let values = || column.values.iter().copied().flatten();
            let [ratio, r1, r3] = quartiles(pairs().map(|(own, peers)| own / peers));
            let [added, a1, a3] = quartiles(pairs().map(|(own, peers)| own - peers));
            let [value, ..] = quartiles(values());
            let [rate, ..] = quartiles(column.rates.iter().copied());
            let least = values().fold(f64::NAN, f64::min);
            let most = values().fold(f64::NAN, f64::max);
            println!(
                "  {:18} {value:13.3} {:>17} {:>24} {:>24} {rate:9.2} {:>6}",
                column.name,
                format!("{least:.3}-{most:.3}"),
                format!("{ratio:.2} [{r1:.2}-{r3:.2}]"),
                format!("{added:+.2} [{a1:+.2}..{a3:+.2}]"),
                column.errors()
            );
        }
        self.print_log();
        println!();
        self.columns.iter().all(|column| column.errors == 0)
    }

    /// What Tollgate's log adds, if it was also measured without one.
    fn print_log(&self) {
        let place = |kind: Kind| self.columns.iter().find(|c| c.name == kind.name());
        let Some(bare) = place(Kind::TollgateBare) else {
            return;
        };
        for with in [Kind::TollgateWrite, Kind::TollgateSync].map(place) {
            let Some(with) = with else { continue };
            let [added, a1, a3] = quartiles(with.beside(bare).map(|(own, bares)| own - bares));
            let (name, unit) = (&with.name, self.unit);
            println!("  the log adds: {name} {added:+.2} [{a1:+.2}..{a3:+.2}] {unit}");
        }
    }
}

/// Median, lower and upper quartile; no numbers if there are none.
fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (sorted.len().saturating_sub(1)) as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        match (sorted.get(low), sorted.get(high)) {
            (Some(low_value), Some(high_value)) => {
                low_value + (high_value - low_value) * place.fract()
            }
            _ => f64::NAN,
        }
    };
    [at(0.5), at(0.25), at(0.75)]
}
