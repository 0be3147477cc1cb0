/*
 * A token goes round all ranks, LAPS times, each adding its number; the sum must be right at the
 * end. Says how far it is every thousand laps, so that a test can break something in between.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, length;
	long long token = 0, expected;
	char name[MPI_MAX_PROCESSOR_NAME];

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Get_processor_name(name, &length);
	printf("rank %d of %d on %s\n", rank, size, name);
	fflush(stdout);

	long laps = argc > 1 ? atol(argv[1]) : 100;
	int next = (rank + 1) % size, previous = (rank + size - 1) % size;

	for (long lap = 1; lap <= laps; lap++) {
		if (rank == 0) {
			MPI_Send(&token, 1, MPI_LONG_LONG, next, 7, MPI_COMM_WORLD);
			MPI_Recv(&token, 1, MPI_LONG_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (lap % 1000 == 0) {
				printf("lap %ld \n", lap);
				fflush(stdout);
			}
		} else {
			MPI_Recv(&token, 1, MPI_LONG_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token += rank;
			MPI_Send(&token, 1, MPI_LONG_LONG, next, 7, MPI_COMM_WORLD);
		}
	}
	expected = (long long)laps * size * (size - 1) / 2;
	int wrong = rank == 0 && token != expected;
	if (rank == 0)
		printf(wrong ? "ring is wrong\n" : "ring is right\n");
	MPI_Finalize();
	return wrong;
}
