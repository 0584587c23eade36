//! Named amounts of things that tasks hold while they run: GPUs, memory, licences.

/// An exact number in steps of a ten-thousandth, so that half a GPU twice is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

impl Amount {
    const STEPS: u64 = 10_000;

    pub fn whole(units: u32) -> Amount {
        Amount(u64::from(units) * Amount::STEPS)
    }

    /// The nearest amount; `None` for what is negative, not finite, or too large to count.
    pub fn from_f64(units: f64) -> Option<Amount> {
        let steps = (units * Amount::STEPS as f64).round();
        (steps >= 0.0 && steps < u64::MAX as f64).then_some(Amount(steps as u64))
    }

    pub fn to_f64(self) -> f64 {
        self.0 as f64 / Amount::STEPS as f64
    }

    /// Units begun: 2 for one and a half.
    pub fn units(self) -> u64 {
        self.0.div_ceil(Amount::STEPS)
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn saturating_sub(self, other: Amount) -> Amount {
        Amount(self.0.saturating_sub(other.0))
    }

    pub fn saturating_add(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }
}

/// Amounts by name; what is not named is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources(Vec<(Box<str>, Amount)>);

impl Resources {
    pub const NONE: Resources = Resources(Vec::new());

    /// Of a name that is given twice, the amounts add up.
    pub fn new<'a>(amounts: impl IntoIterator<Item = (&'a str, Amount)>) -> Resources {
        let mut all = Resources::NONE;
        for (name, amount) in amounts.into_iter().filter(|(_, amount)| !amount.is_zero()) {
            match all.0.binary_search_by(|(known, _)| known.as_ref().cmp(name)) {
                Ok(at) => all.0[at].1 = all.0[at].1.saturating_add(amount),
                Err(at) => all.0.insert(at, (name.into(), amount)),
            }
        }
        all
    }

    /// As messages have them. What is no amount is left out.
    pub fn from_f64<'a>(amounts: impl IntoIterator<Item = &'a (String, f64)>) -> Resources {
        let amounts = amounts.into_iter();
        Resources::new(amounts.filter_map(|(name, amount)| Some((name.as_str(), Amount::from_f64(*amount)?))))
    }

    /// As messages have them.
    pub fn to_f64(&self) -> Vec<(String, f64)> {
        self.iter().map(|(name, amount)| (name.into(), amount.to_f64())).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn amount(&self, name: &str) -> Amount {
        let found = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(name));
        found.map_or(Amount::default(), |at| self.0[at].1)
    }

    /// In the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Amount)> {
        self.0.iter().map(|(name, amount)| (name.as_ref(), *amount))
    }

    /// There is at least as much of everything as `needs` names.
    pub fn covers(&self, needs: &Resources) -> bool {
        needs.iter().all(|(name, amount)| self.amount(name) >= amount)
    }
}

/// What a task holds of one resource of its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub name: Box<str>,
    pub amount: Amount,
    /// Which units of it, counted from 0, and how much of each: GPU 0 or 1. Empty where the worker has
    /// more than [`Grant::MOST_UNITS`] of them, as of bytes of memory.
    pub units: Box<[(u32, Amount)]>,
}

impl Grant {
    pub const MOST_UNITS: u64 = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact() {
        let tenth = Amount::from_f64(0.1).unwrap();
        let sum = (0..10).fold(Amount::default(), |sum, _| sum.saturating_add(tenth));
        assert_eq!(sum, Amount::whole(1));
        assert_eq!(tenth.to_f64(), 0.1);
        assert_eq!(Amount::from_f64(-1.0), None);
        assert_eq!(Amount::from_f64(f64::NAN), None);
        assert_eq!(Amount::from_f64(f64::INFINITY), None);
    }

    #[test]
    fn what_is_not_named_is_zero() {
        let has = Resources::new([("GPU", Amount::whole(2)), ("disk", Amount::default())]);
        assert!(has.covers(&Resources::NONE));
        assert!(has.covers(&Resources::new([("GPU", Amount::whole(2))])));
        assert!(!has.covers(&Resources::new([("GPU", Amount::whole(3))])));
        assert!(!has.covers(&Resources::new([("TPU", Amount::from_f64(0.5).unwrap())])));
        assert_eq!(has.iter().count(), 1);
    }
}
