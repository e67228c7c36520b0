"""The benchmark: this gateway and others doing the same work, measured by the operating system.

``python -m bench`` (``make bench``) runs it; README.rst says how to read what it prints. One module, one part:

=============== ========================================================================
``__main__``    the command line and the order of the runs
``workloads``   what is asked of each contender, and the row that comes of it
``contenders``  who is measured, and how each is started
``stage``       the private Redis, the service, a contender and the load: start and stop
``measure``     processor time and memory of a process, from the operating system
``report``      medians, table, bars, JSON; ``chart`` the picture; ``spread`` the medians
``load``        the clients, a process of its own: ``orders`` is what it understands,
                ``drills`` what it does, ``crowd`` the clients, ``dialects`` what they say
``echo``        the service, a process of its own
=============== ========================================================================
"""
