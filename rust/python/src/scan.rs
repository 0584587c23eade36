//! Arguments that stand for results of other tasks: finding them, and putting the results in their place.
//!
//! They are looked for in lists, tuples, dicts and sets, however nested, and nowhere else: what an object of
//! another type holds is its own business. What holds none of them is passed on as it is, not copied.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};

use crate::handle::Handle;

/// Containers within containers that are looked into; more are taken to have no end.
const MAX_DEPTH: u32 = 500;

/// Stands for the result of a task of the same submission, by its place there. Towards workers, and for tasks of other
/// submissions, by its number.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct Input {
    #[pyo3(get)]
    pub(crate) task: u64,
}

#[pymethods]
impl Input {
    #[new]
    fn new(task: u64) -> Self {
        Self { task }
    }

    fn __repr__(&self) -> String {
        format!("Input({})", self.task)
    }

    /// In a pickle, by the number that the task has in its engine.
    fn __reduce__<'py>(&self, py: Python<'py>) -> (Bound<'py, pyo3::types::PyType>, (u64,)) {
        (py.get_type::<Self>(), (self.task.wrapping_add(crate::session::first_task()),))
    }
}

/// What was found in the place of a result.
pub(crate) enum Place<'a, 'py> {
    Input(u64),
    Handle(&'a Bound<'py, Handle>),
    /// None: an object that is not looked into, nor plain.
    Other,
}

/// Look at each place in a value, in order.
pub(crate) fn visit<'py>(
    value: &Bound<'py, PyAny>,
    each: &mut impl FnMut(Place<'_, 'py>) -> PyResult<()>,
) -> PyResult<()> {
    visit_at(value, each, 0)
}

fn visit_at<'py>(
    value: &Bound<'py, PyAny>,
    each: &mut impl FnMut(Place<'_, 'py>) -> PyResult<()>,
    depth: u32,
) -> PyResult<()> {
    if is_plain(value) {
        return Ok(());
    }
    check_depth(depth)?;
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        tuple.iter().try_for_each(|item| visit_at(&item, each, depth + 1))
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        list.iter().try_for_each(|item| visit_at(&item, each, depth + 1))
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        dict.iter().try_for_each(|(key, item)| {
            visit_at(&key, each, depth + 1)?;
            visit_at(&item, each, depth + 1)
        })
    } else if value.is_exact_instance_of::<PySet>() || value.is_exact_instance_of::<PyFrozenSet>() {
        value.try_iter()?.try_for_each(|item| visit_at(&item?, each, depth + 1))
    } else if let Ok(input) = value.cast_exact::<Input>() {
        each(Place::Input(input.get().task))
    } else if let Ok(handle) = value.cast::<Handle>() {
        each(Place::Handle(handle))
    } else {
        each(Place::Other)
    }
}

/// The value with results in their places; None if it has none.
pub(crate) fn fill<'py>(
    value: &Bound<'py, PyAny>,
    result: &impl Fn(Place<'_, 'py>) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    fill_at(value, result, 0)
}

fn fill_at<'py>(
    value: &Bound<'py, PyAny>,
    result: &impl Fn(Place<'_, 'py>) -> PyResult<Bound<'py, PyAny>>,
    depth: u32,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if is_plain(value) {
        return Ok(None);
    }
    check_depth(depth)?;
    if let Ok(input) = value.cast_exact::<Input>() {
        return result(Place::Input(input.get().task)).map(Some);
    }
    let py = value.py();
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        let items = fill_all(tuple.iter(), result, depth)?;
        return items.map(|items| Ok(PyTuple::new(py, items)?.into_any())).transpose();
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        let items = fill_all(list.iter(), result, depth)?;
        return items.map(|items| Ok(PyList::new(py, items)?.into_any())).transpose();
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        let keys = fill_all(dict.iter().map(|(key, _)| key), result, depth)?;
        let values = fill_all(dict.iter().map(|(_, value)| value), result, depth)?;
        if keys.is_none() && values.is_none() {
            return Ok(None);
        }
        let filled = PyDict::new(py);
        let keys = keys.unwrap_or_else(|| dict.keys().iter().collect());
        let values = values.unwrap_or_else(|| dict.values().iter().collect());
        keys.into_iter().zip(values).try_for_each(|(key, value)| filled.set_item(key, value))?;
        return Ok(Some(filled.into_any()));
    }
    if value.is_exact_instance_of::<PySet>() || value.is_exact_instance_of::<PyFrozenSet>() {
        let items = value.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        let items = fill_all(items.into_iter(), result, depth)?;
        return items.map(|items| value.get_type().call1((PyList::new(py, items)?,))).transpose();
    }
    match value.cast::<Handle>() {
        Ok(handle) => result(Place::Handle(handle)).map(Some),
        Err(_) => Ok(None),
    }
}

/// None if there is nothing to replace.
fn fill_all<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    result: &impl Fn(Place<'_, 'py>) -> PyResult<Bound<'py, PyAny>>,
    depth: u32,
) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
    let mut items: Vec<_> = items.collect();
    let mut found = false;
    for item in &mut items {
        if let Some(filled) = fill_at(item, result, depth + 1)? {
            *item = filled;
            found = true;
        }
    }
    Ok(found.then_some(items))
}

/// A structure with results in the places that stand for them, by the numbers of their tasks.
#[pyfunction]
#[pyo3(name = "fill")]
pub(crate) fn fill_with<'py>(
    structure: Bound<'py, PyAny>,
    results: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let result = |place: Place<'_, 'py>| match place {
        Place::Input(task) => results.as_any().get_item(task),
        _ => Err(PyValueError::new_err("a future has come where there is no client")),
    };
    Ok(fill(&structure, &result)?.unwrap_or(structure))
}

/// Most arguments are of these types, and hold nothing.
fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyBytes>()
}

fn check_depth(depth: u32) -> PyResult<()> {
    if depth > MAX_DEPTH {
        return Err(PyValueError::new_err(format!(
            "the arguments of a task are nested more than {MAX_DEPTH} deep; pass such a structure inside an object of a class"
        )));
    }
    Ok(())
}
