//! `report`: documents in, one merged `report.json`, a self-contained `report.html` and a table.

pub mod summary;
pub mod terminal;
