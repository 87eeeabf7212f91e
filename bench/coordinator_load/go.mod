module coordinatorload

go 1.26.0
