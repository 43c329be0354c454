//! Control: everything around the workers that may wait, log and allocate.
