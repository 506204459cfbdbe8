//! Where a scan of rows goes on, for stores that keep them in the order of their keys.

use crate::error::ReadModelError;

/// The texts that name the last row of a page. They may be anything: what a scan meets is not always what was written.
pub(crate) type Place = Vec<String>;

pub(crate) fn place(name: &str, from: Option<&str>) -> Result<Option<Place>, ReadModelError> {
    from.map(serde_json::from_str).transpose().map_err(|error| ReadModelError::Permanent {
        name: name.to_owned(),
        problem: format!("a scan of rows cannot go on: {error}"),
    })
}

pub(crate) fn next(place: &[&str]) -> Option<String> {
    serde_json::to_string(place).ok()
}
