"""What the scripted module MedSAM3Slicer is made of.

::

    panel         the view: widgets and nothing else
    logic         the controller: runs, scripts, batches
    adapter/      MRML nodes to and from the core
    parameter     what the user chose, and whether it can be used
    workers       how the worker process is started
    installation  what is there, what is missing, how to get it
    terminology   SNOMED CT codes
    sampledata    images to try it on
"""
