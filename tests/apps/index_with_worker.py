"""Prints, as JSON, what Microsoft's worker library indexes in the current folder.

Run with Python 3.13 and ``azure-functions-runtime`` by ``tests/test_worker_indexing.py``. The library gets
its protobuf messages from the worker that embeds it; plain objects stand in for them.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

sys.path.insert(0, os.getcwd())

from azure_functions_runtime.bindings.meta import load_binding_registry
from azure_functions_runtime.functions import Registry
from azure_functions_runtime.http_v2 import HttpV2Registry
from azure_functions_runtime.loader import index_function_app, process_indexed_function


class BindingInfo(SimpleNamespace):
    """Binding directions and data types, numbered as in FunctionRpc.proto."""

    out: ClassVar[int] = 1
    inout: ClassVar[int] = 2
    undefined: ClassVar[int] = 0


class Protos:
    BindingInfo = BindingInfo
    RpcFunctionMetadata = SimpleNamespace
    RpcRetryOptions = SimpleNamespace


def main() -> None:
    load_binding_registry()
    indexed = index_function_app("function_app.py")
    functions, _ = process_indexed_function(Protos, Registry(), indexed, os.getcwd())
    result: dict[str, Any] = {
        "streaming": HttpV2Registry.http_v2_enabled(),
        "functions": {f.name: [json.loads(binding) for binding in f.raw_bindings] for f in functions},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
